"""Run the command line, and what its tests begin with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from edge_prm.cli import main as cli
from edge_prm.manifest import MANIFEST_NAME

PROMPT = "What is 2 + 3 * 4?"
STEPS = ["3 * 4 = 12", "2 + 12 = 13", "The answer is 13."]
ROW = {"problem": PROMPT, "steps": STEPS}
CANDIDATES = [STEPS, "3 * 4 = 12\n\n2 + 12 = 14", ["14"]]
RANK_ROW = {"problem": PROMPT, "candidates": CANDIDATES}


def run(*arguments: object, stdin: str | bytes | None = None, **options: Any) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=stdin, **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, *said: str) -> None:
    """Exit code 2 and one line that says why."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    for part in said:
        assert part in errors[0]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    fields = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    change(fields)
    (folder / MANIFEST_NAME).write_text(json.dumps(fields), encoding="utf-8")
    return folder
