"""Where the results of a benchmark go: tables or JSON on stdout, and files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_prm_bench.results import Results


@dataclass(frozen=True)
class Outputs:
    """Files for the JSON document, the HTML report and the tables as Markdown; `as_json`: JSON on stdout."""

    output: Path | None
    report: Path | None
    markdown: Path | None
    as_json: bool

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise OutputError for a file that cannot be written, or that is an input: before minutes of work."""
        from edge_prm.errors import OutputError
        from edge_prm.output import check_file

        taken = {path.resolve(): "it is one of the inputs" for path in inputs}
        for path in filter(None, (self.output, self.report, self.markdown)):
            check_file(path)
            if path.exists() and not os.access(path, os.W_OK):
                raise OutputError(f"{path} cannot be written: it is read-only; give another name")
            if path.resolve() in taken:
                raise OutputError(f"{path} cannot be written: {taken[path.resolve()]}; give another name")
            taken[path.resolve()] = "two outputs have this name"

    def put(self, results: Results) -> None:
        """Print the results, then write the files."""
        try:
            if self.as_json:
                click.echo(json.dumps(results.as_dict(), allow_nan=False))  # in ASCII: no encoding changes it
            else:
                print_tables(results)
        finally:  # a pipe that was closed, or a fault of a table, does not lose the figures
            self.write(results)

    def write(self, results: Results) -> None:
        """Write each file complete or not at all; the first that fails is raised after the others are written."""
        from edge_prm.errors import EdgePRMError
        from edge_prm.output import write_file
        from edge_prm_bench.report import tables
        from edge_prm_bench.report.html import html

        texts: list[tuple[Path | None, Callable[[], str]]] = [
            (self.output, lambda: json.dumps(results.as_dict(), indent=2, allow_nan=False) + "\n"),
            (self.markdown, lambda: tables.markdown(results)),
            (self.report, lambda: html(results)),
        ]
        first: EdgePRMError | None = None
        for path, text_of in texts:
            if path is None:
                continue
            try:
                write_file(path, text_of().encode("utf-8", "replace").decode("utf-8"))  # rows may hold lone surrogates
            except EdgePRMError as error:
                click.echo(f"not written: {error}", err=True)
                first = first or error
        if first is not None:
            raise first


def print_tables(results: Results) -> None:
    """Print the tables, the notes on the data, and a sentence for each bundle."""
    from edge_prm_bench.report import tables
    from edge_prm_bench.report.html import sentence

    click.echo(tables.hardware(results))
    for table in tables.tables(results):
        click.echo(f"\n{click.style(table.title, bold=True)}\n")
        click.echo(tables.as_text(table))
        if table.note:
            click.echo(click.style(table.note, dim=True))
    click.echo("")
    for note in results.notes:
        click.echo(note)
    for bundle in results.bundles:
        click.echo(f"{click.style(bundle.name, bold=True)}: {sentence(results, bundle)}")


def print_unreadable_rows(results: Results) -> int:
    """Print on stderr which rows could not be read, by reason; the tables count them too. Returns their number."""
    from edge_prm.printable import printable

    unreadable = [omission for omission in results.skipped if omission.unreadable]
    for omission in unreadable:
        places = ", ".join(omission.examples)
        click.echo(f"Error: {printable(f'{omission.data}: {omission.count} {omission.reason} ({places})')}", err=True)
    return sum(omission.count for omission in unreadable)
