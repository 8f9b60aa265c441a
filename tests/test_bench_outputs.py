"""Outputs: refused before any work where they cannot be written, complete or absent, and never lost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_runs import facts_of, needs, rows_of, write_rows
from command_line import refused, run

import edge_prm
from edge_prm.errors import MissingExtraError, OutputError
from edge_prm_bench import check_modules

needs("onnxruntime", "onnx", "tabulate")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "a.jsonl", rows_of(6, "pens"))


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_outputs_that_cannot_be_written_are_refused_before_any_work(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(edge_prm, "load", fail)
    given = ("bench", "quality", bundle, "--data", data)
    refused(run(*given, "-o", tmp_path / "no" / "x.json"), "there is no folder")
    refused(run(*given, "--markdown", tmp_path), "it is a folder")
    refused(run(*given, "-o", tmp_path / "x", "--markdown", tmp_path / "x"), "two outputs have this name")
    refused(run(*given, "-o", data), "it is one of the inputs")
    (tmp_path / "kept").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK or Path(path).name != "kept")
    refused(run(*given, "-o", tmp_path / "kept"), "read-only")
    assert (tmp_path / "kept").read_text() == "mine"


def test_figures_are_printed_before_they_are_written(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one file: the others are written, and the figures are on stdout."""
    from edge_prm import output

    write = output.write_file

    def full(target: Path, text: str) -> None:
        if target.name == "x.json":
            raise OutputError(f"{target} cannot be written: the disk is full")
        write(target, text)

    monkeypatch.setattr(output, "write_file", full)
    outputs = ("-o", tmp_path / "x.json", "--markdown", tmp_path / "x.md")
    result = run("bench", "quality", bundle, "--data", data, *outputs, "--json")
    assert result.exit_code == 2
    assert facts_of(result)["quality"]["steps"]
    assert "the disk is full" in result.stderr
    assert "| rewards of" in (tmp_path / "x.md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="a pipe that is closed is another error there")
def test_a_closed_pipe_loses_no_file(bundle: Path, data: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "edge_prm", "bench", "quality", str(bundle), "--data", str(data)]
    command += ["-o", str(tmp_path / "x.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=300)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["quality"]["steps"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp936"])
def test_any_encoding_of_stdout(encoding: str, bundle: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    data = write_rows(tmp_path / "模型é😀.jsonl", rows_of(3, "pens"))
    command = [sys.executable, "-m", "edge_prm", "bench", "quality", str(bundle), "--data", str(data)]
    for options in ([], ["--json"]):
        done = subprocess.run(
            [*command, *options], capture_output=True, check=False,
            env=environment | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["quality"]["steps"][0]["sample"]["data"] == "模型é😀.jsonl"


def test_only_a_report_needs_the_modules_of_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = {"matplotlib", "jinja2", "onnx"}
    without: Callable[..., Any] = lambda name, *rest: None if name in absent else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    check_modules(("quality",), report=False)
    with pytest.raises(MissingExtraError, match=r"^onnx not installed"):
        check_modules(("latency",), report=False)
    with pytest.raises(MissingExtraError, match=r"jinja2, matplotlib not installed.*edge-prm\[bench\]"):
        check_modules(("quality",), report=True)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_no_extra_brings_a_second_onnxruntime() -> None:
    """`onnxruntime` and `onnxruntime-gpu` are one module: the one that is installed last overwrites the other."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [line for extra in project["optional-dependencies"].values() for line in extra]
    assert not [line for line in wanted if line.startswith("onnxruntime-")]
