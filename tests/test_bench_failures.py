"""Names, failures and options of a run: what is wrong with one bundle or file is said, and costs no other figures."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_runs import measure, needs, rows_of, silent, write_rows
from command_line import refused, run

import edge_prm
from edge_prm.errors import InputError, MissingExtraError
from edge_prm.prm import load
from edge_prm_bench.baselines import read_baselines
from edge_prm_bench.plan import make_plan
from edge_prm_bench.results import Options
from edge_prm_bench.suite import run_suite

needs("onnxruntime", "onnx", "tabulate")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write_rows(tmp_path / "a.jsonl", rows_of(6, "pens")), write_rows(tmp_path / "b.jsonl", rows_of(4, "eggs"))


def test_bundles_and_files_of_one_name_are_distinguished_by_their_folder(bundle: Path, tmp_path: Path) -> None:
    folders, files = [], []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        folders.append(shutil.copytree(bundle, tmp_path / folder / "out"))
        files.append(write_rows(tmp_path / folder / "data.jsonl", rows_of(3 + len(files), folder)))
    facts = measure("quality", *folders, "--data", files[0], "--data", files[1])
    assert [row["name"] for row in facts["bundles"]] == ["first/out", "second/out"]
    assert {row["sample"]["data"] for row in facts["quality"]["steps"]} == {"first/data.jsonl", "second/data.jsonl"}


def test_nothing_is_given_twice(bundle: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    refused(run("bench", "quality", bundle, bundle.name, "--data", two[0]), "is given twice")
    refused(run("bench", "quality", bundle, "--data", two[0], "--data", two[0]), "is given twice")


def test_a_baseline_never_takes_the_column_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    peer = write_rows(tmp_path / "peer", [{"peer": bundle.name, "64": 123.4}])
    result = run("bench", "latency", bundle, "--lengths", "64", "--runs", 2, "--peer", peer)
    assert f"{bundle.name} (peer)" in result.stdout


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([""], "holds no figures of a peer"),
        (["{}"], "line 1 does not hold the figures of a peer"),
        (["[]"], "line 1 does not hold"),
        (["no"], "line 1 does not hold"),
        ([{"peer": 1}], "peer is not a string"),
        ([{"peer": "x", "512": "fast"}], "line 1 does not hold"),
        ([{"peer": "x"}, {"peer": "y", "mean": []}], "line 2 does not hold"),
        ([{"peer": "x", "64": 1.0}, {"peer": "x", "128": 2.0}], "two lines"),
        (['{"peer": "x", "64": NaN}'], "not finite"),
    ],
)
def test_a_file_that_holds_no_baselines_is_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_baselines([write_rows(tmp_path / "peer", rows)])


def test_lengths_of_a_baseline_may_be_keys_of_its_object(tmp_path: Path) -> None:
    rows = [{"peer": "x", "64": 1.0, "prefill": {"128": 2.0}, "size_gb": 3}]
    (baseline,) = read_baselines([write_rows(tmp_path / "peer", rows)])
    assert (baseline.prefill, baseline.size_gb, baseline.mean) == ({64: 1.0, 128: 2.0}, 3.0, None)


@pytest.mark.parametrize(
    ("typed", "meant"), [("fidelityy", "fidelity"), ("latancy", "latency"), ("Quality", "quality"), ("sute", "suite")]
)
def test_a_mistyped_part_names_the_part_that_is_meant(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ((typed, "x"), ("--threads", 1, typed, "x")):
        result = run("bench", *arguments)
        assert result.exit_code == 2
        assert f"for the part {meant}, write `edge-prm bench {meant} ...`" in result.stderr
    refused(run("bench", "nothing-like-it"), "is not an edge-prm bundle")


def test_an_unusable_bundle_of_several_is_a_failure_and_the_others_are_measured(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"")
    for unusable in (tmp_path / "nowhere", broken):
        facts = measure("quality", unusable, bundle, "--data", two[0], exit_code=1)
        assert {row["name"] for row in facts["quality"]["steps"]} == {bundle.name}
        assert len(facts["failures"]) == 1
    refused(run("bench", "quality", broken, "--data", two[0]), "model.onnx")
    refused(run("bench", "quality", tmp_path / "x", tmp_path / "y", "--data", two[0]), "no bundle can be used")


def test_a_bundle_that_runs_out_of_memory_keeps_the_figures_of_its_first_file(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))

    class OutOfMemory:
        """A loaded PRM that has no memory for texts about eggs."""

        def __init__(self, prm: Any) -> None:
            self._prm = prm

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._prm.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._prm, name)

        def score_many(self, trajectories: Any) -> Any:
            for trajectory in trajectories:
                if "eggs" in trajectory.prompt:
                    raise MemoryError
                yield self._prm.score(trajectory)

    def load_one(path: Path, **options: Any) -> Any:
        prm = load(path, **options)
        return OutOfMemory(prm) if path == other else prm

    monkeypatch.setattr(edge_prm, "load", load_one)
    facts = measure("quality", other, bundle, "--data", two[0], "--data", two[1], exit_code=1)
    assert {(row["name"], row["sample"]["data"]) for row in facts["quality"]["steps"]} == {
        ("other", "a.jsonl"), (bundle.name, "a.jsonl"), (bundle.name, "b.jsonl"),
    }  # fmt: skip
    assert facts["failures"] == [{"name": "other", "part": "scoring", "reason": "MemoryError"}]


def test_an_unusable_file_of_several_is_a_failure_and_the_others_are_used(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [])
    facts = measure("quality", bundle, "--data", empty, "--data", two[0], exit_code=1)
    assert {row["sample"]["data"] for row in facts["quality"]["steps"]} == {"a.jsonl"}


def test_device_and_layers_reach_the_engine(
    bundle: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(edge_prm, "load", lambda path, **options: given.append(options) or load(path))
    measure("quality", bundle, "--data", two[0], "--device", "gpu", "--gpu-layers", 3)
    assert given == [{"threads": None, "device": "gpu", "gpu_layers": 3}]


def test_a_gpu_that_an_engine_cannot_use_is_refused(bundle: Path, two: tuple[Path, Path]) -> None:
    refused(run("bench", "quality", bundle, "--data", two[0], "--device", "gpu"), "CPU")


def test_a_threshold_that_is_not_a_number_is_refused(bundle: Path, two: tuple[Path, Path]) -> None:
    result = run("bench", "quality", bundle, "--data", two[0], "--threshold", "nan")
    assert result.exit_code == 2
    assert "nan is not a number" in result.stderr


def test_the_plan_needs_no_engine(bundle: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    options = Options.of(data=two, parts=("quality",))
    assert [file.data.name for file in make_plan([bundle], options).files] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(MissingExtraError):
        run_suite([bundle], options, silent)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="lenghts"):
        Options.of(lenghts=(64,))
