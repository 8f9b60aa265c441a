"""References in torch: the authors' formula, once, and nothing lost when the run is killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refused, run

from edge_prm.demo import CHECKPOINTS
from edge_prm.demo.derivations import generate
from edge_prm.errors import HeadNotFoundError, InputError, MissingExtraError
from edge_prm.prm import load
from edge_prm_bench.data import read_data
from edge_prm_bench.reference_file import Provenance, ReferenceWriter, Row, read_reference
from edge_prm_bench.torch_model import TorchPRM, head_kind

PROVENANCE = Provenance("demo", "c" * 64, "d" * 64, "sigmoid", "fp32", "cpu", 1, "data.jsonl", "e" * 64, "blank", 3)
ROWS = [Row("a", (0.25, 0.1), 12), Row("b", None, 9000, "9000 tokens"), Row("ç", (0.5,), 3)]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        {"id": index, "problem": each.problem, "steps": each.steps}
        for index, each in enumerate(generate(40_000_001, 24))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE)
    writer.write(ROWS[:2])
    writer.write(ROWS[2:])
    writer.close()
    reference = read_reference(tmp_path / "r.jsonl")
    assert reference.provenance == PROVENANCE
    assert list(reference.rows) == ROWS


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_file_cut_anywhere_goes_on_from_its_last_whole_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    whole = PROVENANCE.header() + "".join(row.line() for row in ROWS)
    path.write_bytes(whole.encode()[:-cut])
    writer = ReferenceWriter(path, PROVENANCE)
    writer.write(row for row in ROWS if row.id not in writer.done)
    writer.close()
    assert path.read_text() == whole


def test_a_file_that_was_cut_in_its_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(PROVENANCE.header().encode()[:50])
    ReferenceWriter(path, PROVENANCE).close()
    assert path.read_text() == PROVENANCE.header()


@pytest.mark.parametrize(
    "change", [{"dtype": "bf16"}, {"checkpoint_sha256": "f" * 64}, {"data_sha256": "f" * 64}, {"batch_size": 4}]
)
def test_a_file_of_another_run_is_not_gone_on_with(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "r.jsonl"
    ReferenceWriter(path, PROVENANCE).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"was begun with {next(iter(change))}"):
        ReferenceWriter(path, replace(PROVENANCE, **change))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "[]\n", "no\n", '{"format": "edge-prm-reference"}\n'])
def test_what_is_no_reference_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"r\.jsonl"):
        read_reference(path)


def test_a_reference_of_other_data_is_refused(tmp_path: Path, data_file: Path) -> None:
    ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE).close()
    with pytest.raises(InputError, match="was made from other data"):
        read_reference(tmp_path / "r.jsonl").rewards_for(read_data(data_file))


def test_a_reference_that_is_not_complete_says_how_to_go_on(tmp_path: Path, data_file: Path) -> None:
    data = read_data(data_file)
    ReferenceWriter(tmp_path / "r.jsonl", replace(PROVENANCE, data_sha256=data.sha256)).close()
    with pytest.raises(InputError, match="24 of 24 traces are missing; run the same"):
        read_reference(tmp_path / "r.jsonl").rewards_for(data)


# the run


@pytest.fixture
def torch_installed() -> None:
    pytest.importorskip("torch", reason="references are made in torch: pip install torch transformers")
    pytest.importorskip("transformers", reason="references are made by transformers: pip install transformers")


@pytest.mark.usefixtures("torch_installed")
@pytest.mark.parametrize("source", CHECKPOINTS)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_reference_is_what_the_fp32_bundle_gives(
    tmp_path: Path, data_file: Path, source: str, batch_size: int
) -> None:
    """Two ways to the authors' formula that share no code: torch, and the exported graph in fp32."""
    pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')
    from edge_prm_export import export

    result = run(
        "bench", "reference", source, data_file, "-o", tmp_path / "r.jsonl", "--batch-size", batch_size, "--threads", 1
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["traces"] == 24
    data = read_data(data_file)
    rewards = read_reference(tmp_path / "r.jsonl").rewards_for(data)
    with load(export(source, tmp_path / "bundle", recipe="fp32")) as prm:
        for trace, reference in zip(data.traces, rewards, strict=True):
            score = next(iter(prm.score_many([trace.trajectory])))
            assert reference == pytest.approx(score.rewards, abs=1e-4)


@pytest.mark.usefixtures("torch_installed")
def test_a_text_over_the_positions_is_marked(tmp_path: Path, data_file: Path) -> None:
    rows = data_file.read_text().splitlines()[:2]
    rows.append(json.dumps({"id": "long", "problem": "P", "steps": ["1 + 1 = 2 " * 600]}))
    rows.append(json.dumps({"id": "looks", "problem": "P", "steps": ["a <extra_0> b"]}))
    data_file.write_text("\n".join(rows))
    result = run("bench", "reference", "demo-reference", data_file, "-o", tmp_path / "r.jsonl", "--threads", 1)
    assert result.exit_code == 0, result.output
    by_id = {row.id: row for row in read_reference(tmp_path / "r.jsonl").rows}
    assert by_id["long"].rewards is None
    assert "positions" in by_id["long"].skipped
    assert by_id["looks"].rewards is None
    assert "<extra_0>" in by_id["looks"].skipped
    assert by_id["0"].rewards is not None


@pytest.mark.usefixtures("torch_installed")
def test_a_run_killed_ten_times_loses_and_repeats_nothing(tmp_path: Path, data_file: Path) -> None:
    """SIGKILL at random moments; the file is at last, byte by byte, that of a run left alone."""
    program = [
        sys.executable, "-c",
        # Each trace takes a while, so that a kill falls between two of them or into one.
        "import sys, time; import edge_prm_bench.torch_model as t; one = t.TorchPRM.rewards\n"
        "t.TorchPRM.rewards = lambda self, batch: (time.sleep(0.15), one(self, batch))[1]\n"
        "from edge_prm.cli import main; main(sys.argv[1:])",
        "bench", "reference", "demo", str(data_file), "--threads", "1", "-o",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    alone, killed = tmp_path / "alone.jsonl", tmp_path / "killed.jsonl"
    subprocess.run([*program, str(alone)], check=True, capture_output=True, env=environment)
    rng = random.Random(5)
    kills = 0
    while kills < 10:
        process = subprocess.Popen(
            [*program, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        before = killed.read_bytes() if killed.exists() else b""
        deadline = time.monotonic() + 120
        # Not during the import: until a row more is written, and then a moment later.
        while process.poll() is None and (
            not killed.exists() or killed.read_bytes().count(b"\n") <= before.count(b"\n")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.random() * 0.15)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills == 10
    subprocess.run([*program, str(killed)], check=True, capture_output=True, env=environment)
    assert killed.read_bytes() == alone.read_bytes()


@pytest.mark.usefixtures("torch_installed")
def test_cuda_where_there_is_none_is_one_sentence(tmp_path: Path, data_file: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    refused(run("bench", "reference", "demo", data_file, "-o", tmp_path / "r", "--device", "cuda"), "no CUDA device")
    assert not (tmp_path / "r").exists()


def test_a_missing_torch_says_what_to_install(tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("bench", "reference", "demo", data_file, "-o", tmp_path / "r")
    refused(result, 'pip install "edge-prm[reference]"')
    with pytest.raises(MissingExtraError):
        TorchPRM(tmp_path, "fp32")


def test_a_checkpoint_without_a_head_is_named(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    assert [head_kind(checkpoint_of(head)) for head in ("sigmoid", "two_class", "token_class")] == [
        "sigmoid", "two_class", "token_class",
    ]  # fmt: skip
    with pytest.raises(HeadNotFoundError, match=r"reward_head\.pt"):
        head_kind(tmp_path)


def test_empty_data_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    refused(run("bench", "reference", "demo", tmp_path / "empty.jsonl", "-o", tmp_path / "r"), "holds no rows")
    assert not (tmp_path / "r").exists()
