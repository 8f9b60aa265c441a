"""A benchmark that cannot lie: references of this very data, the same traces in every column, everything else counted,
nothing but the work inside the clock, and no numbers lost.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import edit_manifest, refused, run
from edge_prm_bench.peers import read_peers
from fake_backend import FakeModel

import edge_prm
from edge_prm.errors import BackendError, InputError, MissingExtraError, OutputError
from edge_prm.manifest import MANIFEST_NAME, read_manifest
from edge_prm.prm import PRM, load
from edge_prm_bench import check_modules, scoring
from edge_prm_bench.data import read_data
from edge_prm_bench.plan import make_plan
from edge_prm_bench.reference.file import Provenance, ReferenceWriter, Row
from edge_prm_bench.report import tables
from edge_prm_bench.results import Options
from edge_prm_bench.speed import latency
from edge_prm_bench.statistics import coverage
from edge_prm_bench.statistics.coverage import Missing, Scored
from edge_prm_bench.suite import run_suite

for module, extra in (("onnxruntime", "cpu"), ("onnx", "export"), ("tabulate", "bench")):
    pytest.importorskip(module, reason=f'the benchmark needs {module}: pip install "edge-prm[{extra}]"')

ROOT = Path(__file__).parent.parent
PROBLEM = "Ada has 4 pens and buys 3 boxes of 2. How many pens?"
LONG = "6 + 4 = 10. " * 30


def rows_of(count: int, word: str, long: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Rows without ids, so that the same ids name other rows of another file."""
    return [
        {
            "problem": f"{PROBLEM} {word} {index}",
            "steps": [f"{index} {word}", LONG if index in long else "4 + 6 = 10.", "The answer is 10."][
                : 2 + index % 2
            ],
            "label": -1 if index % 2 else 1,
        }
        for index in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def reference_of(
    bundle: Path, data: Path, path: Path, shift: float, *, dtype: str = "fp32", rows: int | None = None,
    limit: int | None = None, skip: Sequence[int] = (),
) -> Path:  # fmt: skip
    """A reference file whose rewards are those of the bundle and `shift`."""
    manifest, read = read_manifest(bundle), read_data(data, limit=limit)
    provenance = Provenance(
        manifest.source.name, manifest.source.sha256, manifest.files["tokenizer.json"].sha256, manifest.head.kind, dtype,
        "cpu", 1, read.name, read.sha256, read.split, len(read.traces),
    )  # fmt: skip
    writer = ReferenceWriter(path, provenance)
    with load(bundle, threads=1) as prm:
        for index, trace in enumerate(read.traces[:rows]):
            rewards = next(iter(prm.score_many([trace.trajectory]))).rewards
            shifted = None if index in skip else tuple(reward + shift for reward in rewards)
            writer.write([Row(trace.id, shifted, 9, "too long" if index in skip else "")])
    writer.close()
    return path


def facts_of(result: Any) -> dict[str, Any]:
    """The last line of stdout, which is always one JSON document."""
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert facts["schema"] == "edge-prm-bench/2"
    return facts


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two files with the same ids, one of them shorter."""
    return write_rows(tmp_path / "a.jsonl", rows_of(6, "pens")), write_rows(tmp_path / "b.jsonl", rows_of(4, "eggs"))


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(edge_prm, "load", fail)


# references


def test_each_file_is_compared_with_its_own_reference(bundle: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    """Two files and two references with the same row ids: by id, any reward could be that of any file."""
    references = [reference_of(bundle, data, tmp_path / f"r{i}", shift) for i, (data, shift) in enumerate(zip(two, (0.01, 0.02), strict=True))]  # fmt: skip
    for order in (references, references[::-1]):
        given = [part for path in order for part in ("--reference", path)]
        result = run("bench", "fidelity", bundle, "--data", two[0], "--data", two[1], *given, "--threads", 1)
        assert result.exit_code == 0, result.output
        found = {row["data"]: row for row in facts_of(result)["quantization"]}
        assert set(found) == {"a.jsonl", "b.jsonl"}
        assert found["a.jsonl"]["mean"]["value"] == pytest.approx(0.01)
        assert found["b.jsonl"]["mean"]["value"] == pytest.approx(0.02)
        assert (found["a.jsonl"]["traces"], found["b.jsonl"]["traces"]) == (6, 4)


def test_a_file_without_a_reference_has_no_numbers_and_says_so(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01)
    result = run("bench", "fidelity", bundle, "--data", two[0], "--data", two[1], "--reference", reference)
    assert result.exit_code == 0, result.output
    facts = facts_of(result)
    assert [row["data"] for row in facts["quantization"]] == ["a.jsonl"]
    assert ("b.jsonl", 4, "fidelity: no reference was made from this file") in {
        (one["data"], one["count"], one["reason"]) for one in facts["left_out"]
    }


@pytest.mark.usefixtures("no_models")
def test_a_reference_that_fits_no_file_is_refused_before_any_model(two: tuple[Path, Path], tmp_path: Path, bundle: Path) -> None:  # fmt: skip
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01)
    for limit in ((), ("--limit", 2)):
        refused(run("bench", bundle, "--data", two[1], "--reference", reference, *limit), "was made from other data")


def test_a_reference_of_the_first_traces_is_cut_or_counted(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01, limit=4)
    for limit, traces, beyond in (((), 4, 0), (("--limit", 3), 3, 0), (("--limit", 0), 4, 2)):
        result = run("bench", "fidelity", bundle, "--data", two[0], "--reference", reference, *limit)
        facts = facts_of(result)
        (row,) = facts["quantization"]
        assert (row["traces"], row["left_out"]) == (traces, beyond)
        assert row["mean"]["value"] == pytest.approx(0.01)
        counts = [one["count"] for one in facts["left_out"] if "which the reference holds" in one["reason"]]
        assert counts == [beyond] * bool(beyond)


@pytest.mark.usefixtures("no_models")
def test_an_incomplete_reference_alone_is_refused(two: tuple[Path, Path], tmp_path: Path, bundle: Path) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01, rows=3)
    refused(run("bench", "fidelity", bundle, "--data", two[0], "--reference", reference), "is not complete")


def test_a_bad_reference_of_several_costs_only_itself(bundle: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    good = reference_of(bundle, two[0], tmp_path / "good", 0.01)
    half = reference_of(bundle, two[0], tmp_path / "half", 0.02, rows=3)
    damaged = write_rows(tmp_path / "damaged", ["{}"])
    given = [part for path in (half, damaged, good) for part in ("--reference", path)]
    result = run("bench", "fidelity", bundle, "--data", two[0], *given)
    assert result.exit_code == 1, result.output
    facts = facts_of(result)
    assert facts["quantization"][0]["mean"]["value"] == pytest.approx(0.01)
    assert facts["noise_floor"] == []
    reasons = {failure["reason"] for failure in facts["failures"]}
    assert any("is not complete" in reason for reason in reasons)
    assert any("is not a reference file" in reason for reason in reasons)
    assert "Failed" in result.stdout


def test_a_reference_is_parsed_once(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01)
    parsed: list[object] = []
    read = scoring.read_reference
    monkeypatch.setattr(scoring, "read_reference", lambda path: parsed.append(path) or read(path))
    assert (
        run("bench", "fidelity", bundle, "--data", *two[:1], "--data", two[1], "--reference", reference).exit_code == 0
    )
    assert parsed == [reference]


@pytest.mark.parametrize(
    ("backend", "recipe", "name", "rounding"),
    [
        ("gguf", "f32", "tiny-sigmoid fp32, GGUF with KV cache in fp16", 1),
        ("optimum", "fp32", "tiny-sigmoid fp32, optimum", 0),
        ("onnx", "fp32", "tiny-sigmoid fp32", 0),
        ("gguf", "f16", None, None),
        ("gguf", "q8_0", None, None),
        ("onnx", "int8", None, None),
    ],
)
def test_full_precision_is_decided_by_bits(
    own_bundle: Path, backend: str, recipe: str, name: str | None, rounding: int | None
) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["backend"], fields["recipe"]["name"] = backend, recipe
        fields["files"]["model.gguf"] = fields["files"]["model.onnx"]

    edit_manifest(own_bundle, change)
    if name is None:
        with pytest.raises(InputError, match=f"recipe {recipe}; a reference has full precision"):
            scoring.reference_judge(own_bundle, None)
    else:
        judge = scoring.reference_judge(own_bundle, None)
        assert (judge.name, judge.rounding) == (name, rounding)


def test_a_reference_that_reads_another_separator_is_refused(
    bundle: Path, own_bundle: Path, two: tuple[Path, Path], bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Faithful or not cannot be said of two that read other tokens."""
    full = Path(shutil.copytree(bundle_of("token_class", "fp32"), tmp_path / "full"))
    edit_manifest(full, lambda fields: fields["input"].update(separator="\n\n\n"))
    result = run("bench", "fidelity", bundle_of("token_class", "int8"), "--data", two[0], "--reference", full)
    refused(result, "was made with separator '\\n\\n\\n'")


def test_a_tuple_and_the_list_that_a_file_makes_of_it_are_the_same() -> None:
    fields = {"separator": "x", "refused": ("a", "b")}
    assert scoring._as_json(fields) == {"separator": "x", "refused": ["a", "b"]}


# what is left out


@pytest.fixture
def short(bundle: Path, tmp_path: Path) -> Path:
    """The same bundle with a shorter context."""
    return edit_manifest(
        Path(shutil.copytree(bundle, tmp_path / "short")), lambda fields: fields.update(context_length=300)
    )


def test_all_rows_of_a_table_use_the_same_traces(bundle: Path, short: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows_of(8, "pens", long=(2, 5)))
    reference = reference_of(bundle, data, tmp_path / "r", 0.01, skip=(0,))
    for bundles in ((bundle, short), (short, bundle)):
        result = run(
            "bench", "suite", *bundles, "--data", data, "--reference", reference, "--lengths", "64", "--runs", 2
        )
        assert result.exit_code == 0, result.output
        facts = facts_of(result)
        names = {row["ours"]: row for row in facts["quantization"]}
        assert {name: (row["traces"], row["left_out"], row["own"]) for name, row in names.items()} == {
            bundle.name: (5, 3, 7),
            "short": (5, 3, 5),
        }
        assert {(row["name"], row["traces"], row["own"]) for row in facts["step_quality"]} == {
            (bundle.name, 5, 8), ("short", 5, 6), ("tiny-sigmoid fp32, torch", 5, 7),
        }  # fmt: skip
        reasons = {(one["of"], one["count"], one["reason"]) for one in facts["left_out"]}
        assert ("short", 2, "traces over the context of 300 tokens") in reasons
        assert ("tiny-sigmoid fp32, torch", 1, "traces that were skipped in the reference") in reasons
        assert (bundle.name, 3, "quality: traces that another row of this file has no reward for") in reasons
        assert "7 of its own" in result.stdout
        assert "Left out" in result.stdout


def test_a_bundle_that_scores_no_trace_does_not_empty_the_table(bundle: Path, short: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows_of(3, "pens", long=(0, 1, 2)))
    result = run("bench", "quality", bundle, short, "--data", data)
    assert result.exit_code == 1, result.output
    facts = facts_of(result)
    assert {(row["name"], row["traces"]) for row in facts["step_quality"]} == {(bundle.name, 3)}
    assert "over the context of 300 tokens" in facts["failures"][0]["reason"]


def test_rows_and_labels_that_cannot_be_used_are_counted() -> None:
    entry = SimpleNamespace
    traces = [
        entry(id="1", first_wrong=0, correct=None, unlabelled=""),
        entry(id="2", first_wrong=None, correct=None, unlabelled="a step has no label"),
        entry(id="3", first_wrong=None, correct=None, unlabelled="a step has no label"),
        entry(id="4", first_wrong=None, correct=None, unlabelled=""),
    ]
    left_out = [entry(place=f"line {n}", reason="not valid JSON") for n in (5, 6)] + [
        entry(place=f"line {n}", reason=f"reason {n}") for n in range(20)
    ]
    data: Any = entry(name="d", traces=traces, left_out=left_out)
    found = {one.reason: one.count for one in coverage.of_file(data, 10, labelled=True)}
    assert found["rows that cannot be read: not valid JSON"] == 2
    assert sum(count for reason, count in found.items() if reason.startswith("rows")) == 22
    assert found["quality: traces without a usable label: a step has no label"] == 2
    assert found["quality: traces without a usable label: the row has no label"] == 1
    assert found["traces beyond the first 4, which are measured; --limit 0 takes all"] == 6


@pytest.mark.parametrize("failing", [{1}, {0, 1}, {3}, {0, 1, 2, 3}])
def test_a_trace_that_fails_costs_only_itself(failing: set[int], tmp_path: Path) -> None:
    """Rewards stay with their traces, whichever of them fail and however early."""
    data = read_data(write_rows(tmp_path / "data.jsonl", rows_of(4, "pens")))
    which = {trace.trajectory.prompt: index for index, trace in enumerate(data.traces)}

    class Engine:
        def score_many(self, trajectories: Any) -> Iterator[Any]:
            for trajectory in trajectories:
                if (index := which[trajectory.prompt]) in failing:
                    raise BackendError(f"the reward at token {index} is nan")
                yield SimpleNamespace(rewards=(float(index),) * len(trajectory.steps))

    judge: Any = SimpleNamespace(scored=lambda rewards, missing: Scored("x", rewards, "last", missing))
    scored = scoring.rewards_of_bundle(judge, Engine(), data, _silent)  # type: ignore[arg-type]
    assert scored.indices == {0, 1, 2, 3} - failing
    assert all(scored.rewards[index][0] == index for index in scored.indices)  # type: ignore[index]
    assert scored.missing == {
        i: Missing("traces that could not be scored", f"the reward at token {i} is nan") for i in failing
    }


def test_an_engine_that_cannot_start_shifts_no_rewards(tmp_path: Path) -> None:
    data = read_data(write_rows(tmp_path / "data.jsonl", rows_of(3, "pens")))
    attempts: list[int] = []

    class Engine:
        def score_many(self, trajectories: Any) -> Iterator[Any]:
            attempts.append(1)
            if len(attempts) == 1:
                raise BackendError("no sequence is free")
            return iter([SimpleNamespace(rewards=(trajectory.prompt,)) for trajectory in trajectories])

    judge: Any = SimpleNamespace(scored=lambda rewards, missing: Scored("x", rewards, "last", missing))
    scored = scoring.rewards_of_bundle(judge, Engine(), data, _silent)  # type: ignore[arg-type]
    assert scored.rewards == [None, *((trace.trajectory.prompt,) for trace in data.traces[1:])]


class _silent:
    def __init__(self, label: str, total: int) -> None: ...
    def __enter__(self) -> Callable[[int], None]:
        return lambda done: None

    def __exit__(self, *_: object) -> None: ...


def test_rewards_of_a_reference_that_are_no_numbers_are_counted(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    judge = scoring.reference_judge(reference_of(bundle, two[0], tmp_path / "r", 0.0), None)
    data = read_data(two[0])
    known = [(0.5,) * len(trace.texts) for trace in data.traces]
    known[2] = (float("nan"),) * len(known[2])
    scored = scoring.rewards_of_reference(judge, known, data)
    assert scored.indices == {0, 1, 3, 4, 5}
    assert "no number" in scored.missing[2].kind


def test_lengths_over_the_context_are_named(short: Path) -> None:
    result = run("bench", "latency", short, "--lengths", "64,64,512", "--runs", 2, "--threads", 1)
    assert result.exit_code == 0, result.output
    facts = facts_of(result)
    assert [row["tokens"] for row in facts["bundles"][0]["speed"]["prefill"]] == [64]
    assert facts["left_out"][0]["reason"] == "lengths over the context of 300 tokens"
    assert facts["bundles"][0]["device"] == "cpu"


def test_completions_of_one_step_are_pointed_out(bundle: Path, bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    lines = "First, 4 and 6 are 10 pens in all.\nThen 10 - 2 = 8 pens are left.\nThe answer is 8 pens."
    rows = [{"problem": PROBLEM, "completion": lines}, {"problem": "P", "completion": "a\n\nb"}]
    data = write_rows(tmp_path / "a.jsonl", rows)
    if not getattr(read_data(data), "one_step", 0):
        pytest.skip("the reader of rows does not count them")
    full = bundle_of("sigmoid", "fp32")
    result = run("bench", "fidelity", bundle, "--data", data, "--reference", full, "--markdown", tmp_path / "x.md")
    (note,) = facts_of(result)["notes"]
    assert note.startswith("a.jsonl: 1 completions are read as one step each")
    assert note in result.stdout
    assert note in (tmp_path / "x.md").read_text(encoding="utf-8")


# names


def test_bundles_and_files_of_one_name_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    folders, files = [], []
    for run_name in ("one", "two"):
        (tmp_path / run_name).mkdir()
        folders.append(shutil.copytree(bundle, tmp_path / run_name / "out"))
        files.append(write_rows(tmp_path / run_name / "data.jsonl", rows_of(3 + len(files), run_name)))
    facts = facts_of(run("bench", "quality", *folders, "--data", files[0], "--data", files[1]))
    assert [one["name"] for one in facts["bundles"]] == ["one/out", "two/out"]
    assert {row["data"] for row in facts["step_quality"]} == {"one/data.jsonl", "two/data.jsonl"}


def test_references_of_one_name_are_told_apart(bundle: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    given = [p for i in (1, 2) for p in ("--reference", reference_of(bundle, two[0], tmp_path / f"r{i}", i / 100))]
    facts = facts_of(run("bench", "fidelity", bundle, "--data", two[0], *given))
    (row,), (floor,) = facts["quantization"], facts["noise_floor"]
    assert row["reference"].endswith("r1)")
    assert floor["ours"].endswith("r2)")


@pytest.mark.usefixtures("no_models")
def test_nothing_is_given_twice(bundle: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    refused(run("bench", "quality", bundle, bundle.name, "--data", two[0]), "is given twice")
    refused(run("bench", "quality", bundle, "--data", two[0], "--data", two[0]), "is given twice")


def test_a_peer_never_covers_a_bundle(bundle: Path, tmp_path: Path) -> None:
    peer = write_rows(tmp_path / "peer", [{"peer": bundle.name, "64": 123.4}])
    result = run("bench", "latency", bundle, "--lengths", "64", "--runs", 2, "--peer", peer)
    assert f"{bundle.name} (peer)" in result.stdout
    write_rows(peer, [{"peer": "x", "64": 1.0}, {"peer": "x", "128": 2.0}])
    with pytest.raises(InputError, match="two lines"):
        read_peers([peer])
    with pytest.raises(InputError, match="not finite"):
        read_peers([write_rows(peer, ['{"peer": "x", "64": NaN}'])])


@pytest.mark.parametrize(
    ("typed", "meant"), [("fidelityy", "fidelity"), ("latancy", "latency"), ("Quality", "quality"), ("sute", "suite")]
)
def test_a_mistyped_part_is_told(typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ((typed, "x"), ("--threads", 1, typed, "x")):
        result = run("bench", *arguments)
        assert result.exit_code == 2
        assert f"for the part {meant}, write `edge-prm bench {meant} ...`" in result.stderr
    refused(run("bench", "nothing-like-it"), "is not an edge-prm bundle")


# failures


def test_a_bad_bundle_of_several_costs_only_itself(bundle: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"")
    for bad in (tmp_path / "nowhere", broken):
        result = run("bench", "quality", bad, bundle, "--data", two[0])
        assert result.exit_code == 1, result.output
        facts = facts_of(result)
        assert {row["name"] for row in facts["step_quality"]} == {bundle.name}
        assert len(facts["failures"]) == 1
    refused(run("bench", "quality", broken, "--data", two[0]), "model.onnx")
    refused(run("bench", "quality", tmp_path / "x", tmp_path / "y", "--data", two[0]), "no bundle can be used")


def test_a_bundle_that_fails_in_the_middle_loses_no_numbers(
    bundle: Path, short: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    score = scoring.rewards_of_bundle

    def fail(judge: Any, *rest: Any) -> Any:
        if judge.source == short and rest[1].name == "b.jsonl":
            raise MemoryError
        return score(judge, *rest)

    monkeypatch.setattr(scoring, "rewards_of_bundle", fail)
    facts = facts_of(result := run("bench", "quality", short, bundle, "--data", two[0], "--data", two[1]))
    assert result.exit_code == 1
    assert {(row["name"], row["data"]) for row in facts["step_quality"]} == {
        ("short", "a.jsonl"), (bundle.name, "a.jsonl"), (bundle.name, "b.jsonl"),
    }  # fmt: skip
    assert facts["failures"] == [{"name": "short", "part": "scoring", "reason": "MemoryError"}]


def test_a_bad_file_of_several_costs_only_itself(bundle: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [])
    result = run("bench", "quality", bundle, "--data", empty, "--data", two[0])
    assert result.exit_code == 1, result.output
    assert {row["data"] for row in facts_of(result)["step_quality"]} == {"a.jsonl"}


# the clock


@pytest.fixture
def token_clock(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second for each token that is computed, and for nothing else."""
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(fake.computed))


@pytest.mark.usefixtures("token_clock")
def test_ranking_is_timed_without_what_prepares_it(prm: PRM) -> None:
    rank = latency.measure_rank(prm)
    assert rank is not None
    assert rank.alone.best == rank.alone.worst == rank.one_by_one  # each text once, and no other
    assert rank.shared.best == rank.shared.worst == rank.computed
    assert abs(rank.computed - rank.needed) <= rank.candidates
    assert rank.shared.runs == rank.alone.runs >= 5
    assert rank.faster.p50 == pytest.approx(rank.one_by_one / rank.computed)


@pytest.mark.usefixtures("token_clock")
def test_prefill_and_pushes_are_timed_alone(prm: PRM) -> None:
    prefill = latency.measure_prefill(prm, 100)
    assert (prefill.timing.best, prefill.timing.worst, prefill.timing.runs) == (100, 100, 5)
    push = latency.measure_pushes(prm, 20)
    assert push is not None
    assert push.first.runs == push.last.runs == 5
    assert push.last.worst <= push.tokens + push.computed_beyond_new + 2


# options and outputs


def test_device_and_layers_reach_the_engine(bundle: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(edge_prm, "load", lambda path, **options: asked.append(options) or load(path))
    assert run("bench", "quality", bundle, "--data", two[0], "--device", "gpu", "--gpu-layers", 3).exit_code == 0
    assert asked == [{"threads": None, "device": "gpu", "gpu_layers": 3}]


def test_a_gpu_that_an_engine_cannot_use_is_refused(bundle: Path, two: tuple[Path, Path]) -> None:
    refused(run("bench", "quality", bundle, "--data", two[0], "--device", "gpu"), "runs those on the CPU")


@pytest.mark.usefixtures("no_models")
def test_outputs_that_cannot_be_written_are_refused_before_any_work(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("bench", "quality", bundle, "--data", two[0])
    refused(run(*given, "--json", tmp_path / "no" / "x.json"), "there is no folder")
    refused(run(*given, "--markdown", tmp_path), "it is a folder")
    refused(run(*given, "--json", tmp_path / "x", "--markdown", tmp_path / "x"), "two outputs have this name")
    refused(run(*given, "--json", two[0]), "it is one of the inputs")
    (tmp_path / "kept").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK or Path(path).name != "kept")
    refused(run(*given, "--json", tmp_path / "kept"), "read-only")
    assert (tmp_path / "kept").read_text() == "mine"


def test_numbers_are_printed_before_they_are_written(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one file: the others are written, and nothing measured is lost."""
    from edge_prm import output

    write = output.write_file

    def full(target: Path, text: str) -> None:
        if target.name == "x.json":
            raise OutputError(f"{target} cannot be written: the disk is full")
        write(target, text)

    monkeypatch.setattr(output, "write_file", full)
    outputs = ("--json", tmp_path / "x.json", "--markdown", tmp_path / "x.md")
    result = run("bench", "quality", bundle, "--data", two[0], *outputs)
    assert result.exit_code == 2
    assert facts_of(result)["step_quality"]
    assert "the disk is full" in result.stderr
    assert "| judge" in (tmp_path / "x.md").read_text()


def test_a_table_that_fails_loses_no_file(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr(tables, "hardware", broken)
    with pytest.raises(BrokenPipeError):
        run("bench", "quality", bundle, "--data", two[0], "--json", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["step_quality"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp936"])
def test_any_encoding_of_stdout(encoding: str, bundle: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "模型é😀.jsonl", rows_of(3, "pens"))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "edge_prm.cli.main", "bench", "quality", str(bundle), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step_quality"][0]["data"] == "模型é😀.jsonl"


def test_only_a_report_needs_the_modules_of_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_prm_bench.missing_modules", lambda extra: ["matplotlib", "jinja2", "onnx"])
    check_modules(("quality",), report=False)
    with pytest.raises(MissingExtraError, match=r"^onnx not installed"):
        check_modules(("latency",), report=False)
    with pytest.raises(MissingExtraError, match=r"matplotlib, jinja2 not installed.*edge-prm\[bench\]"):
        check_modules(("quality",), report=True)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_no_extra_brings_a_second_onnxruntime() -> None:
    """`onnxruntime` and `onnxruntime-gpu` are one module: the one that is installed last overwrites the other."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [line for extra in project["optional-dependencies"].values() for line in extra]
    assert not [line for line in wanted if line.startswith("onnxruntime-")]


def test_a_threshold_that_is_no_number_is_refused(bundle: Path, two: tuple[Path, Path]) -> None:
    result = run("bench", "quality", bundle, "--data", two[0], "--threshold", "nan")
    assert result.exit_code == 2
    assert "nan is not a number" in result.stderr


def test_the_plan_needs_no_engine(bundle: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    plan = make_plan([bundle], Options(data=two, parts=("quality",)))
    assert [file.data.name for file in plan.files] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(MissingExtraError):
        run_suite([bundle], Options(data=two, parts=("quality",)), _silent)


def test_the_manifest_of_a_bundle_is_where_it_was(bundle: Path) -> None:
    """The fixtures above change copies only."""
    assert (bundle / MANIFEST_NAME).is_file()
    assert read_manifest(bundle).context_length > 300


def test_rows_that_cannot_be_read_are_named_and_end_with_exit_code_1(bundle: Path, tmp_path: Path) -> None:
    good = [json.dumps({"problem": "P", "steps": ["a", "b"], "label": label}) for label in (-1, 1)]
    (tmp_path / "data.jsonl").write_text("\n".join([good[0], "{", '{"problem": "P"}', good[1]]))
    result = run("bench", "quality", bundle, "--data", tmp_path / "data.jsonl", "--threads", 1)
    assert result.exit_code == 1
    facts = json.loads(result.stdout.splitlines()[-1])
    assert sum(one["count"] for one in facts["left_out"] if one["reason"].startswith("rows")) == 2
    assert facts["step_quality"][0]["traces"] == 2
    assert "data.jsonl: 1 rows that cannot be read: not valid JSON" in result.stderr
    assert "(line 2)" in result.stderr
    assert "its fields are problem" in result.stderr
