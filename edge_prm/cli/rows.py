"""`edge-prm rows`: how a file of rows is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edge_prm.cli import options as shared
from edge_prm.cli.command import INPUT, OUTPUT, Command, option
from edge_prm.cli.row_files import open_rows, rows_argument
from edge_prm.exit_codes import EXIT_SOME_FAILED


@click.command(
    "rows",
    cls=Command,
    examples=(
        "edge-prm rows traces.jsonl",
        "edge-prm rows answers.csv --prompt-field question --completion-field answer --split lines",
    ),
)
@rows_argument
@shared.split
@shared.fields
@option(
    "--bundle", section=INPUT, type=click.Path(path_type=Path),
    help="Cut completions at the separator of this bundle too.",
)  # fmt: skip
@option(
    "--limit", section=OUTPUT, type=click.IntRange(min=0), default=3, show_default=True, help="Rows to show in full."
)
@shared.as_json
def show_rows(rows: Path, split: str, bundle: Path | None, limit: int, as_json: bool, **given: Any) -> None:
    """Show how a file of rows is read, before any scoring.

    The first rows are shown in full (format, prompt, steps, candidates, labels, what is left out), the others are
    counted. No model is loaded.

    Exit code 1: some rows cannot be read.
    """
    from edge_prm.cli.view_rows import overview_lines
    from edge_prm.records.overview import overview
    from edge_prm.score import json_line

    separator = None
    if bundle is not None:
        from edge_prm.manifest import read_manifest

        separator = read_manifest(bundle).input.separator_text
    summary = overview(open_rows(rows, shared.take_fields(given)), split, separator, limit, str(rows))
    for line in [json_line(summary.as_dict())] if as_json else overview_lines(summary):
        click.echo(line)
    if summary.bad:
        sys.exit(EXIT_SOME_FAILED)
