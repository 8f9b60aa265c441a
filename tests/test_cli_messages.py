"""What goes where: JSON alone on stdout, everything else on stderr, and how much of it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import PROMPT, RANK_ROW, ROW, STEPS, refused, run
from conftest import REDUCED, need_engine

from edge_prm.cli import verbosity
from edge_prm.cli.main import main
from edge_prm.notices import EdgePRMWarning

ONE_STEP = {"problem": PROMPT, "completion": "Step 1: a\nStep 2: b\nStep 3: c"}
LABELLED = [{"problem": PROMPT, "steps": STEPS, "label": label} for label in (-1, 1)]


# JSON


def command_lines(bundle: Path, rows: Callable[..., Path], out: Path) -> dict[str, tuple[list[object], int]]:
    """Name -> arguments, and the number of JSON documents that they print."""
    labelled = rows(*LABELLED, ONE_STEP)
    return {
        "info": (["info", bundle], 1),
        "check": (["check", bundle], 1),
        "export": (["export", "demo", "-o", out / "new", *["--reduce-range"] * REDUCED], 1),
        "rows": (["rows", labelled], 1),
        "score": (["score", bundle, labelled], 3),
        "bench quality": (["bench", "quality", bundle, "--data", labelled, "--limit", 2], 1),
        "bench fidelity": (["bench", "fidelity", bundle, "--data", labelled, "--reference", out.parent / "full"], 1),
    }


@pytest.mark.parametrize("name", ["info", "check", "export", "rows", "score", "bench quality", "bench fidelity"])
def test_json_is_all_of_stdout(
    bundle: Path, bundle_of: Callable[..., Path], rows: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    need_engine("onnx")
    if name.startswith("bench"):
        pytest.importorskip("tabulate", reason='this needs tabulate: pip install "edge-prm[bench]"')
        (tmp_path / "full").symlink_to(bundle_of("sigmoid", "fp32"))
    (tmp_path / "out").mkdir()
    arguments, documents = command_lines(bundle, rows, tmp_path / "out")[name]
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.output
    if name == "info":
        json.loads(result.stdout)
        return
    lines = result.stdout.splitlines()
    assert len(lines) == documents
    for line in lines:
        assert isinstance(json.loads(line), dict)


def test_rank_as_json_has_tokens_and_what_was_computed(bundle: Path, rows: Callable[..., Path]) -> None:
    (line,) = run("rank", bundle, rows(RANK_ROW), "--json").stdout.splitlines()
    facts = json.loads(line)
    for candidate in facts["candidates"]:
        assert 0 < candidate["computed"] <= candidate["tokens"]
    assert facts["computed"] >= sum(candidate["computed"] for candidate in facts["candidates"]) > 0


def test_tables_of_the_benchmark_hold_no_json(bundle: Path, rows: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tabulate", reason='this needs tabulate: pip install "edge-prm[bench]"')
    result = run("bench", "quality", bundle, "--data", rows(*LABELLED), "-o", tmp_path / "x.json")
    assert result.exit_code == 0, result.output
    assert not [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert json.loads((tmp_path / "x.json").read_text())["quality"]["steps"]


def test_the_reference_says_in_a_sentence_what_json_says(rows: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason='this needs torch: pip install "edge-prm[reference]"')
    arguments = ("bench", "reference", "demo", rows(ROW, ONE_STEP), "-o", tmp_path / "r.jsonl", "--threads", 1)
    sentence = run(*arguments).stdout
    facts = json.loads(run(*arguments, "--json").stdout)  # it is complete, and nothing is scored again
    assert (facts["traces"], facts["not_scored"], facts["not_read"]) == (2, 0, 0)
    assert sentence == f"{tmp_path / 'r.jsonl'}: 2 traces, {facts['tokens']} tokens\n"


# quiet and verbose


@pytest.mark.parametrize("arguments", [["-q", "score"], ["score", "-q"], ["--quiet", "score", "--quiet"]])
def test_quiet_prints_errors_only(bundle: Path, rows: Callable[..., Path], arguments: list[str]) -> None:
    file = rows(ROW, ONE_STEP, b"{")
    loud = run("score", bundle, file, "--json")
    assert "Note: " in loud.stderr
    quiet = run(*arguments, bundle, file, "--json")
    assert (quiet.exit_code, quiet.stdout) == (1, loud.stdout)
    (line,) = quiet.stderr.splitlines()
    assert line.startswith("Error: ")


def test_quiet_hides_progress_and_warnings(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_engine("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    arguments = ("export", "demo", "--fp32")
    loud = run(*arguments, "-o", "loud")
    assert "Warning: demo is the embedded checkpoint" in loud.stderr
    assert "..." in loud.stderr
    quiet = run(*arguments, "-o", "quiet", "-q")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert quiet.stdout.replace("quiet", "loud") == loud.stdout


@pytest.mark.parametrize(
    ("option", "printed"),
    [
        ([], ["Warning: three"]),
        (["-v"], ["Info: two", "Warning: three"]),
        (["-vv"], ["Debug: one", "Info: two", "Warning: three"]),
        (["-q"], []),
    ],
)
def test_verbose_prints_the_log(option: list[str], printed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def work(**_: Any) -> None:
        log = logging.getLogger("edge_prm.something")
        log.debug("one")
        log.info("two")
        log.warning("three")

    monkeypatch.setattr(main.commands["info"], "callback", work)
    for arguments in ([*option, "info", "x"], ["info", "x", *option]):
        assert run(*arguments).stderr.splitlines() == printed
    logger = logging.getLogger("edge_prm")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


def test_verbose_says_which_model_was_loaded(bundle: Path, rows: Callable[..., Path]) -> None:
    result = run("score", bundle, rows(ROW), "-v")
    assert f"Info: <PRM '{bundle}'" in result.stderr


def test_quiet_and_verbose_exclude_each_other() -> None:
    refused(run("-q", "info", "x", "-v"), "--quiet and --verbose exclude each other")


def test_quiet_ends_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, as where a program calls the command line: nothing is left of an option."""
    seen: list[bool] = []

    def work(**_: Any) -> None:
        seen.append(verbosity.quiet())
        warnings.warn("w", EdgePRMWarning, stacklevel=1)
        verbosity.note("a note")

    monkeypatch.setattr(main.commands["info"], "callback", work)
    assert run("info", "x", "-q").stderr == ""
    assert run("info", "x").stderr.splitlines() == ["Warning: w", "a note"]
    assert seen == [True, False]
    assert click.get_current_context(silent=True) is None
