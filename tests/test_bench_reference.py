"""References in torch: the authors' formula, once, and nothing is lost when the run is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import refused, run

from edge_prm.demo import CHECKPOINTS
from edge_prm.demo.derivations import generate
from edge_prm.prm import load
from edge_prm_bench.data import read_data
from edge_prm_bench.reference.file import read_reference


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        {"id": index, "problem": each.problem, "steps": each.steps}
        for index, each in enumerate(generate(40_000_001, 24))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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
    """Two ways to the authors' formula: torch, and the exported graph in fp32."""
    pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')
    from edge_prm_export import export

    result = run(
        "bench", "reference", source, data_file, "-o", tmp_path / "r.jsonl", "--batch-size", batch_size, "--threads", 1,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["traces"] == 24
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
    result = run(
        "bench", "reference", "demo-reference", data_file, "-o", tmp_path / "r.jsonl", "--threads", 1, "--json"
    )
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["not_scored"] == 1
    by_id = {row.id: row for row in read_reference(tmp_path / "r.jsonl").rows}
    assert by_id["long"].rewards is None
    assert "positions" in by_id["long"].skipped
    assert len(by_id["looks"].rewards or ()) == 1  # plain text, as in a bundle
    assert by_id["0"].rewards is not None


@pytest.mark.usefixtures("torch_installed")
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_costs_its_row_only(
    tmp_path: Path, data_file: Path, checkpoint_of: Callable[[str], Path], batch_size: int, value: float
) -> None:
    """The embedding of one character overflows; the file is JSON, and its reader counts the row."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    source = Path(shutil.copytree(checkpoint_of("sigmoid"), tmp_path / "source"))
    (broken,) = Tokenizer.from_file(str(source / "tokenizer.json")).encode("~").ids
    weights = load_file(source / "model.safetensors")
    weights["model.embed_tokens.weight"][broken] = value
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    rows = data_file.read_text().splitlines()[:3]
    rows.insert(1, json.dumps({"id": "broken", "problem": "P", "steps": ["a", "b ~ c", "d"]}))
    data_file.write_text("\n".join(rows))
    arguments = ("-o", tmp_path / "r.jsonl", "--threads", 1, "--batch-size", batch_size)
    result = run("bench", "reference", source, data_file, *arguments)
    assert result.exit_code == 1
    assert "not scored: broken: the reward of step " in result.stderr

    def no_constant(text: str) -> None:
        raise AssertionError(text)

    lines = [json.loads(line, parse_constant=no_constant) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines[1:]] == ["0", "broken", "1", "2"]
    assert ["rewards" in line for line in lines[1:]] == [True, False, True, True]
    reference = read_reference(tmp_path / "r.jsonl")
    assert [row.id for row in reference.rows if row.skipped] == ["broken"]
    assert reference.rewards_for(read_data(data_file))[1] is None
    again = run("bench", "reference", source, data_file, *arguments)
    assert again.exit_code == 1


@pytest.mark.usefixtures("torch_installed")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--good-token", "+", "--bad-token", "-", "--separator", " ="), "was begun with head 'sigmoid'"),
        (("--dtype", "bf16"), "was begun with dtype 'fp32'"),
        (("--limit", "5"), "was begun with "),
    ],
)
def test_other_options_do_not_continue_a_file(
    tmp_path: Path, data_file: Path, options: tuple[str, ...], said: str
) -> None:
    arguments = ("bench", "reference", "demo", data_file, "-o", tmp_path / "r.jsonl", "--threads", 1)
    assert run(*arguments).exit_code == 0
    before = (tmp_path / "r.jsonl").read_bytes()
    refused(run(*arguments, *options), said)
    assert (tmp_path / "r.jsonl").read_bytes() == before


@pytest.mark.usefixtures("torch_installed")
def test_options_that_describe_a_checkpoint_go_into_the_header(
    tmp_path: Path, data_file: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    """And the bundle that is exported with the same options has the same rewards."""
    pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')
    from edge_prm_export import export

    data_file.write_text("\n".join(data_file.read_text().splitlines()[:4]))
    output = tmp_path / "r.jsonl"
    arguments = ("bench", "reference", checkpoint_of("sigmoid"), data_file, "-o", output, "--threads", 1)
    result = run(
        *arguments,
        "--good-token",
        "+",
        "--bad-token",
        "-",
        "--separator",
        " !",
        "--between",
        "  ",
        "--after-step",
        "\n",
    )
    assert result.exit_code == 0, result.output
    reference = read_reference(output)
    assert (reference.provenance.checkpoint.head, reference.provenance.checkpoint.tokens) == ("token_pair", ("+", "-"))
    form = reference.provenance.checkpoint.input
    assert (form["format"], form["separator"], form["between"], form["after"]) == ("tagged", " !", "  ", "\n")
    bundle = export(
        str(checkpoint_of("sigmoid")), tmp_path / "bundle", recipe="fp32", token_pair=("+", "-"), separator=" !",
        between="  ", after_step="\n",
    )  # fmt: skip
    with load(bundle) as prm:
        for trace, row in zip(read_data(data_file).traces, reference.rows, strict=True):
            assert row.rewards == pytest.approx(next(iter(prm.score_many([trace.trajectory]))).rewards, abs=1e-4)
    output.unlink()
    refused(run(*arguments, "--good-token", "+"), "--good-token and --bad-token go together")
    refused(run(*arguments, "--between", "x"), "describe a token_pair head")
    refused(run(*arguments, "--good-token", "no such", "--bad-token", "-"), "no token 'no such'")
    assert not output.exists()


KILLED = """
import os, random, signal, sys, time
import torch, transformers, edge_prm_export.optimum.torch_checkpoint, edge_prm_bench.reference.make  # once, for all the children
import edge_prm_bench.reference.torch_model as model
from edge_prm.cli.main import main

torch.set_num_threads(1)
data, alone, killed, kills = sys.argv[1:]
original = model.TorchPRM.rewards


def slow(self, batch):  # so that a kill falls between two rows or into one
    time.sleep(0.03)
    return original(self, batch)


model.TorchPRM.rewards = slow


def start(output):
    child = os.fork()
    if child:
        return child
    try:
        main(["bench", "reference", "demo", data, "--threads", "1", "-o", output])
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(70)


began = time.monotonic()
_, status = os.waitpid(start(alone), 0)
assert status == 0, status
seconds = time.monotonic() - began
rng = random.Random(5)
for _ in range(int(kills)):
    child = start(killed)
    time.sleep(rng.random() * seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(open(killed, "rb").read().count(b"\\n") if os.path.exists(killed) else 0)
_, status = os.waitpid(start(killed), 0)
assert status == 0, status
"""


@pytest.mark.usefixtures("torch_installed")
def test_a_run_killed_twenty_times_loses_and_repeats_nothing(tmp_path: Path, data_file: Path) -> None:
    """SIGKILL at random moments of a run; the file is at last, byte by byte, that of a run left alone."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    alone, killed = tmp_path / "alone.jsonl", tmp_path / "killed.jsonl"
    kills = os.environ.get("EDGE_PRM_KILLS", "20")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, data_file, alone, killed, kills], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert len(lines) == int(kills)
    assert lines == sorted(lines)  # no complete line is ever taken back
    assert killed.read_bytes() == alone.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.jsonl", "data.jsonl", "killed.jsonl"]


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
    refused(result, "torch", 'not installed; install with: pip install "edge-prm[reference]"')
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("torch_installed")
def test_a_checkpoint_without_a_head_is_named(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, data_file: Path
) -> None:
    source = Path(shutil.copytree(checkpoint_of("sigmoid"), tmp_path / "source"))
    (source / "reward_head.pt").unlink()
    refused(run("bench", "reference", source, data_file, "-o", tmp_path / "r"), "has no reward head", "reward_head.pt")
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("torch_installed")
def test_empty_data_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    refused(run("bench", "reference", "demo", tmp_path / "empty.jsonl", "-o", tmp_path / "r"), "holds no rows")
    assert not (tmp_path / "r").exists()
