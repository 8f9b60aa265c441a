"""`python -m edge_prm_bench.gpu_day`: a real run with tiny shapes on the CPU's provider, and what happens to a bad one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import needs
from json_layout import NUMBER, OR_NULL, problems

from edge_prm.journal import Journal, JournalHeader
from edge_prm_bench.gpu_day.checkpoint import write_checkpoint
from edge_prm_bench.gpu_day.environment import child_environment
from edge_prm_bench.gpu_day.plan import Task, has_torch
from edge_prm_bench.gpu_day.runner import Runner, newest
from edge_prm_bench.gpu_day.scale import BUNDLES, FULL, TINY, Shape
from edge_prm_bench.gpu_day.table import markdown

needs("onnxruntime", "onnx", "ml_dtypes")

FRACTION = (*NUMBER, OR_NULL)
TIMING = {"best": NUMBER, "p50": NUMBER, "p95": NUMBER, "worst": NUMBER, "runs": int}
PREFILL = [{"tokens": int, "tokens_per_second": NUMBER, "timing": TIMING}]
BUNDLE = {
    "recipe": str, "device": str, "prefill": PREFILL,
    "export": (
        {"seconds": NUMBER, "bytes": int, "mean_difference": NUMBER, "max_difference": NUMBER, "tolerance": NUMBER,
         "within_tolerance": bool},
        OR_NULL,
    ),
    "share_of_limit": ({"*": NUMBER}, OR_NULL),
    "check": (
        {"trusted": bool, "verdict": str, "sentence": str, "reward_count": int, "mean_difference": NUMBER,
         "max_difference": NUMBER, "device_drift": NUMBER, "incremental_difference": NUMBER, "tolerance": NUMBER,
         "...": object},
        OR_NULL,
    ),
    "push": ({"tokens": int, "first": TIMING, "last": TIMING, "growth": NUMBER, "computed_beyond_new": int}, OR_NULL),
    "rank": (
        {"candidates": int, "shared": TIMING, "alone": TIMING, "computed": int, "needed": int, "one_by_one": int,
         "faster": {"p50": NUMBER, "low": NUMBER, "high": NUMBER}},
        OR_NULL,
    ),
    "memory": ({"tokens": int, "host_gb": FRACTION, "device_gb": FRACTION}, OR_NULL),
    "memcpy": (int, OR_NULL),
    "energy": ({"tokens": int, "joules": NUMBER, "watts": NUMBER, "source": str}, OR_NULL),
}  # fmt: skip
TORCH = {
    "attention": str, "dtype": str, "device": str, "prefill": PREFILL,
    "memory": ({"tokens": int, "device_gb": FRACTION}, OR_NULL),
    "rewards": ({"reward_count": int, "mean_difference": NUMBER, "max_difference": NUMBER}, OR_NULL),
}  # fmt: skip
DOCUMENT = {
    "schema": str,
    "environment": {
        "run_on": str, "threads": int, "limits": [{"kind": str, "device": str, "gops": NUMBER}],
        "card": ({"name": str, "memory_gb": FRACTION, "driver": (str, OR_NULL), "cuda": (str, OR_NULL)}, OR_NULL),
        "device": {
            "machine": str, "memory_gb": FRACTION, "system": str, "power_mode": (str, OR_NULL), "versions": {"*": str},
            "processor": {"name": str, "instructions": [str], "cores": int, "governor": (str, OR_NULL)},
        },
    },
    "checkpoint": {"scale": str, "shape": {"*": int}, "parameters": (int, OR_NULL), "bytes": (int, OR_NULL)},
    "bundles": [BUNDLE], "torch": [TORCH],
    "failures": [{"subject": str, "figure": str, "reason": str}], "notes": [str],
}  # fmt: skip


def gpu_day(folder: Path, *options: object, device: str = "cpu") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *options, device=device), capture_output=True, text=True, env=environment(), check=False
    )


def command(folder: Path, *options: object, device: str = "cpu") -> list[str]:
    given = [str(option) for option in ("-o", folder, "--device", device, "--threads", 1, "--minutes", 60, *options)]
    return [sys.executable, "-m", "edge_prm_bench.gpu_day", *given]  # an hour: a busy machine ends no run


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def facts_of(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in run.stderr
    facts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return facts


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A complete run, and its document; not to be changed."""
    folder = tmp_path_factory.mktemp("day") / "out"
    run = gpu_day(folder, "--tiny")
    assert run.returncode == 0, run.stderr
    return folder, facts_of(run)


def test_the_document_of_a_run_has_these_keys_and_types(day: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = day
    assert problems(facts, DOCUMENT) == []
    assert facts["schema"] == "edge-prm-gpu-day/1"
    assert json.loads((folder / "gpu-day.json").read_text(encoding="utf-8")) == facts
    assert (folder / "gpu-day.md").read_text(encoding="utf-8") == markdown(facts)


def test_every_recipe_is_exported_checked_and_timed(day: tuple[Path, dict[str, Any]]) -> None:
    _, facts = day
    assert facts["failures"] == []
    assert [bundle["recipe"] for bundle in facts["bundles"]] == [bundle.recipe for bundle in BUNDLES]
    for made, bundle in zip(BUNDLES, facts["bundles"], strict=True):
        lengths = TINY.cpu_lengths if made.compared else TINY.lengths
        assert [speed["tokens"] for speed in bundle["prefill"]] == list(lengths)
        assert bundle["check"]["verdict"] == "trusted", bundle["check"]["sentence"]
        assert bundle["check"]["incremental_difference"] == 0.0  # on a CPU
        assert bundle["check"]["device_drift"] <= 0.001
        assert bundle["memory"]["device_gb"] is None
        if not made.compared:
            assert bundle["push"]
            assert bundle["rank"]["candidates"] == 16
            assert bundle["memcpy"] == 0
    assert {limit["kind"] for limit in facts["environment"]["limits"]} == {"fp16", "int8"}
    assert all(share > 0 for share in facts["bundles"][0]["share_of_limit"].values())


@pytest.mark.skipif(not has_torch(), reason="torch or transformers is not installed")
def test_torch_computes_what_the_bundles_compute(day: tuple[Path, dict[str, Any]]) -> None:
    _, facts = day
    assert [model["attention"] for model in facts["torch"]] == ["eager", "sdpa"]
    for model in facts["torch"]:
        assert [speed["tokens"] for speed in model["prefill"]] == list(TINY.lengths)
        assert 0 < model["rewards"]["max_difference"] <= 0.01  # bf16; rewards of another text differ by 0.1


def test_the_table_has_a_column_for_each_and_the_hardware(day: tuple[Path, dict[str, Any]]) -> None:
    _, facts = day
    text = markdown(facts)
    head = next(line for line in text.splitlines() if line.startswith("|"))
    assert all(f"{bundle.recipe}, cpu" in head for bundle in BUNDLES)
    assert "onnxruntime" in text.splitlines()[0]
    assert "says nothing about a GPU" in text
    assert "| Memcpy nodes | 0 | 0 | 0 | – | – |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_second_run_measures_nothing_again(day: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, facts = day
    again = shutil.copytree(folder, tmp_path / "again")
    run = gpu_day(again, "--tiny")
    assert (run.returncode, run.stderr) == (0, "")
    assert facts_of(run) == facts
    assert (again / "figures.jsonl").read_bytes() == (folder / "figures.jsonl").read_bytes()


def test_a_bundle_that_fails_costs_only_itself(day: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = day
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "bundles" / "w8a16" / "model.onnx").unlink()
    forget(broken, "w8a16 on cpu")
    run = gpu_day(broken, "--tiny")
    facts = facts_of(run)
    assert run.returncode == 1
    assert {entry["subject"] for entry in facts["failures"]} == {"w8a16 on cpu"}
    assert {entry["figure"] for entry in facts["failures"]} >= {"check", "push", "rank", "prefill 32"}
    assert all(
        "model.onnx: the file is missing" in entry["reason"]
        for entry in facts["failures"]
        if entry["figure"] == "check"
    )
    assert [bool(bundle["prefill"]) for bundle in facts["bundles"]] == [True, False, True, True, True]
    assert "| w8a16 on cpu | check |" in markdown(facts)


def forget(folder: Path, subject: str) -> None:
    """Take the figures of a subject out of a journal."""
    journal = folder / "figures.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if json.loads(line).get("subject") != subject), encoding="utf-8")


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    run = gpu_day(tmp_path / "out", "--tiny", "--minutes", 0, "--recipe", "fp16")
    facts = facts_of(run)
    assert run.returncode == 1
    assert problems(facts, DOCUMENT) == []
    assert {"checkpoint", "export fp16", "fp16 on cpu", "device cpu"} <= {
        entry["subject"] for entry in facts["failures"]
    }
    assert all(
        "the time was used up" in entry["reason"] or "there is no" in entry["reason"] for entry in facts["failures"]
    )


@pytest.mark.skipif(os.name == "nt", reason="process groups are of POSIX")
def test_a_run_that_is_killed_goes_on_where_it_ended(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen(
        command(folder, "--tiny"), start_new_session=True, env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        wait_for(folder / "figures.jsonl", '"parameters"')
        os.killpg(process.pid, signal.SIGKILL)
    written = (folder / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    facts = facts_of(gpu_day(folder, "--tiny", "--minutes", 0))
    assert facts["checkpoint"]["parameters"] > 400_000
    assert "checkpoint" not in {entry["subject"] for entry in facts["failures"]}
    assert (folder / "checkpoint" / "model.safetensors").stat().st_mtime_ns == written


def wait_for(path: Path, text: str) -> None:
    for _ in range(1200):
        if path.exists() and text in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    pytest.fail(f"{path} never held {text}")


def test_a_folder_of_another_scale_is_refused(day: tuple[Path, dict[str, Any]]) -> None:
    run = gpu_day(day[0], "--minutes", 0)
    assert run.returncode == 2
    assert "was begun with scale 'tiny' and this run has '1.5b'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "CUDAExecutionProvider"), ("gpu", "choose cuda, cuda:1 or cpu"), ("tpu", "is not one of")],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, device: str, said: str
) -> None:
    import onnxruntime

    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU here")
    run = gpu_day(tmp_path / "out", "--tiny", device=device)
    assert run.returncode == 2
    assert said in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# the checkpoint


def test_the_full_checkpoint_has_the_shapes_of_the_1_5b() -> None:
    assert FULL.shape == Shape(1536, 28, 12, 2, 8960, 151_936, 32_768)
    assert FULL.lengths == (128, 512, 2048, 8192)


def test_the_random_checkpoint_has_finite_values_of_the_wanted_size(tmp_path: Path) -> None:
    from edge_prm_export.checkpoint.files import open_checkpoint

    write_checkpoint(tmp_path / "made", TINY)
    checkpoint = open_checkpoint(str(tmp_path / "made"))
    hidden, added = TINY.shape.hidden_size, (2 * TINY.shape.num_hidden_layers) ** -0.5
    wanted = {
        "model.embed_tokens.weight": 1.0,
        "model.layers.0.self_attn.q_proj.weight": hidden**-0.5,
        "model.layers.1.mlp.down_proj.weight": added * TINY.shape.intermediate_size**-0.5,
        "model.layers.1.input_layernorm.weight": 1.0,
    }
    for name, scale in wanted.items():
        values = checkpoint.tensor(name)
        assert np.isfinite(values).all()
        assert scale / 1.5 <= float(np.sqrt((values**2).mean())) <= 1.5 * scale
        assert abs(float(values.mean())) < scale / 10 or "layernorm" in name


def test_the_random_checkpoint_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, TINY)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# the runner, with small programs in place of the tasks


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    (tmp_path / "logs").mkdir()
    return Runner(Journal(tmp_path / "journal", JournalHeader("edge-prm-gpu-day", 1)), tmp_path / "logs", print)


def program(*lines: str, figures: Sequence[str] = ("one", "two"), **options: Any) -> Task:
    return Task("a program", tuple(figures), ("-c", "\n".join(("import json, sys, time", *lines))), **options)


def outcomes(runner: Runner) -> dict[str, Any]:
    return {figure: row.get("value", row.get("failed")) for (_, figure), row in newest(runner.rows).items()}


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


ONE = "print(json.dumps({'figure': 'one', 'seconds': 0, 'value': 1}), flush=True)"


def test_a_process_that_crashes_keeps_what_it_measured(runner: Runner) -> None:
    runner.run(
        [program("print('a library says hello')", ONE, "print('out of memory', file=sys.stderr)", "sys.exit(7)")],
        soon(),
    )
    assert outcomes(runner) == {"one": 1, "two": "its process ended with code 7: out of memory"}


def test_only_what_is_missing_is_asked_for_again(runner: Runner) -> None:
    runner.run([program(ONE)], soon())
    echo = "print(json.dumps({'figure': 'two', 'seconds': 0, 'value': sys.argv[1:]}))"
    runner.run([program(echo)], soon())
    runner.run([program("sys.exit('not to be run')")], soon())
    assert outcomes(runner) == {"one": 1, "two": ["two"]}


def test_a_process_is_ended_at_the_deadline(runner: Runner) -> None:
    started = time.monotonic()
    runner.run([program(ONE, "time.sleep(600)")], soon(5))
    assert time.monotonic() - started < 300
    assert "the time was used up" in outcomes(runner)["two"]


def test_processes_run_at_the_same_time_where_they_may(runner: Runner, tmp_path: Path) -> None:
    """Each waits for the other: one after the other, none would end."""
    tasks = []
    for mine, other in (("a", "b"), ("b", "a")):
        wait = f"import pathlib\npathlib.Path({str(tmp_path / mine)!r}).touch()\nwhile not pathlib.Path({str(tmp_path / other)!r}).exists(): time.sleep(0.01)"
        code = "\n".join(("import json, time", wait, f"print(json.dumps({{'figure': '{mine}', 'value': 1}}))"))
        tasks.append(Task(mine, (mine,), ("-c", code)))
    runner.run(tasks, soon(), jobs=2)
    assert outcomes(runner) == {"a": 1, "b": 1}


def test_what_needs_a_thing_that_failed_is_not_begun(runner: Runner, tmp_path: Path) -> None:
    runner.run([program(ONE, needs=(tmp_path / "bundle",))], soon())
    assert outcomes(runner) == dict.fromkeys(("one", "two"), "there is no bundle, see why above")


def test_what_was_made_and_is_gone_is_made_again(runner: Runner, tmp_path: Path) -> None:
    target = tmp_path / "made"
    task = program(
        f"open({str(target)!r}, 'w').close()",
        "print('{\"bytes\": 5}')",
        figures=("export",),
        makes=target,
        prints_value=True,
    )
    runner.run([task], soon())
    assert outcomes(runner) == {"export": {"bytes": 5}}
    assert runner.missing(task) == []
    target.unlink()
    assert runner.missing(task) == ["export"]


def test_an_export_outside_its_tolerance_is_an_export(runner: Runner) -> None:
    """Exit code 1 of `edge-prm export`: the bundle is written."""
    task = program("print('{\"within_tolerance\": false}')", "sys.exit(1)", figures=("export",), prints_value=True)
    runner.run([task], soon())
    assert outcomes(runner) == {"export": {"within_tolerance": False}}


def test_an_export_that_is_refused_says_why(runner: Runner) -> None:
    runner.run([program("sys.exit('Error: the disk is full')", figures=("export",), prints_value=True)], soon())
    assert outcomes(runner)["export"] == "its process ended with code 1: Error: the disk is full"


def test_processes_find_the_cuda_libraries_that_pip_installed(tmp_path: Path) -> None:
    for name in ("cublas", "cudnn"):
        (tmp_path / "site" / "nvidia" / name / "lib").mkdir(parents=True)
    found = child_environment(1, {"LD_LIBRARY_PATH": "/own", "HOME": "/h"}, ["", "modules", str(tmp_path / "site")])
    libraries = [str(tmp_path / "site" / "nvidia" / name / "lib") for name in ("cublas", "cudnn")]
    assert found["LD_LIBRARY_PATH"].split(os.pathsep) == ["/own", *libraries]
    assert (found["PYTHONPATH"], found["HOME"]) == (os.pathsep.join(("modules", str(tmp_path / "site"))), "/h")
    assert "OMP_NUM_THREADS" not in found


def test_several_processes_share_the_cores() -> None:
    found = child_environment(10_000, {}, [])
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"]) == ("1", "1")
    assert "LD_LIBRARY_PATH" not in found


# the table


def test_torch_on_another_device_is_no_comparison(day: tuple[Path, dict[str, Any]]) -> None:
    facts = json.loads(json.dumps(day[1]))
    facts["torch"] = [{"attention": "eager", "dtype": "bf16", "device": "cuda:0", "memory": None, "rewards": None,
                       "prefill": [{"tokens": 64, "tokens_per_second": 5.0}]}]  # fmt: skip
    assert "over torch eager" not in markdown(facts)
    facts["torch"][0]["device"] = "cpu"
    assert "over torch eager at 64" in markdown(facts)
