"""What `score` and `rank` share: read rows one by one, write the lines of each, report and count what fails."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from edge_prm.cli import options as shared
from edge_prm.cli import verbosity
from edge_prm.cli.command import OUTPUT, option, options
from edge_prm.exit_codes import EXIT_BAD_INPUT, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from edge_prm.prm import PRM
    from edge_prm.records import BadRow, Record
    from edge_prm.trajectory import Trajectory

NOTES_SHOWN = 20
_log = logging.getLogger("edge_prm")

rows_argument = click.argument("rows", metavar="ROWS|-", type=click.Path(path_type=Path, allow_dash=True))
bundle_and_rows = options(click.argument("bundle", type=click.Path(path_type=Path)), rows_argument)
reading_options = options(shared.split, shared.fields, shared.strict)
output = option(
    "-o", "--output", section=OUTPUT, type=click.Path(path_type=Path),
    help="Write to this file, complete or not at all.",
)  # fmt: skip


@dataclass
class RowReport:
    """Counts of a run over a file of rows, and its messages on stderr.

    `name` is the file's; `strict` ends the run at the first failure. `done` counts results, `bad` failures, `one_step`
    texts that gave a single step though another split gives more; `notes` counts what was read differently.
    """

    name: str
    strict: bool
    done: int = 0
    bad: int = 0
    one_step: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def failed(self, record: Record | BadRow, reason: str, part: str = "") -> None:
        """Report a row, or a `part` of it, that has no score; under `strict` the run ends with exit code 2."""
        from edge_prm.printable import printable

        self.bad += 1
        # The reason may quote the row.
        click.echo(f"Error: {self.name}, {_place(record, part)}: {printable(reason)}", err=True)
        if self.strict:
            sys.exit(EXIT_BAD_INPUT)

    def notes_of(self, prm: PRM, record: Record, trajectory: Trajectory, steps: object, part: str) -> list[str]:
        """Count and return notes on how a text was read; the first text with a single step is reported at once."""
        notes = [f"left out: {note}" for note in record.notes]
        if trajectory.cut_at:
            notes.append(f"cut at {trajectory.cut_at}")
        if token := prm.special_at_end(trajectory.completion):
            notes.append(f"the text ends with {token}, which is scored as text")
        self.notes.update(notes)
        hint = self._single_step(record, steps, len(trajectory.steps), part)
        return [*notes, hint] if hint else notes

    def _single_step(self, record: Record, steps: object, count: int, part: str) -> str:
        from edge_prm.split import other_split

        hint = other_split(steps, count) if isinstance(steps, str) else ""
        if not hint:
            return ""
        self.one_step += 1
        if self.one_step == 1:
            verbosity.note(f"Note: {self.name}, {_place(record, part)}: the completion gives one step; {hint}")
        return f"one step; {hint}"

    def finish(self) -> None:
        """Print the counts; exit code 1 when something failed."""
        from edge_prm.printable import plural, printable

        if self.one_step > 1:
            verbosity.note(f"Note: {self.one_step} texts gave one step where another split gives more")
        for text, count in self.notes.most_common(NOTES_SHOWN):
            verbosity.note(f"Note: {printable(text)} ({plural(count, 'row')})")
        if self.bad:
            verbosity.note(f"{self.done} rows done, {self.bad} bad left out")
            sys.exit(EXIT_SOME_FAILED)


Lines = Callable[["PRM", "Record", RowReport], Iterator[str]]
"""What turns a record into the lines of its result."""


def write_rows(
    bundle: Path, rows: Path, lines_of: Lines, strict: bool, split: str, output: Path | None, given: dict[str, Any]
) -> None:
    """Write the lines of every record of a file to `output` or stdout; what fails is reported with its place.

    `given` holds the options of `shared.fields`, and the keywords of `edge_prm.load`.
    """
    from edge_prm.output import check_file
    from edge_prm.prm import load
    from edge_prm.records import BadRow
    from edge_prm.split import splitter

    splitter(split)
    if output is not None:
        check_file(output)
    report = RowReport(str(rows), strict)
    records = open_rows(rows, shared.take_fields(given))
    with load(bundle, **given) as prm, _writer(output) as file:
        _log.info("%r", prm)
        for record in _counted(records, rows_on_stdout=output is None):
            if isinstance(record, BadRow):
                report.failed(record, record.reason)
                continue
            for line in _guarded(lines_of(prm, record, report), record, report):
                click.echo(line, file=file)
    report.finish()


def open_rows(rows: Path, fields: Any) -> Iterator[Record | BadRow]:
    """Records of a file, or of standard input for `-`; InputError for a file that cannot be read."""
    from edge_prm.records import read_records

    if str(rows) == "-":
        return read_records(sys.stdin.buffer, fields, name="standard input")
    return read_records(rows, fields)


def _place(record: Record | BadRow, part: str) -> str:
    return f"{record.place}, {part}" if part else record.place


def _guarded(lines: Iterator[str], record: Record, report: RowReport) -> Iterator[str]:
    """An error of a row costs this row only."""
    from edge_prm.errors import BackendError, InputError

    try:
        yield from lines
    except (InputError, BackendError) as error:
        report.failed(record, str(error))


def _writer(output: Path | None) -> AbstractContextManager[IO[str] | None]:
    from edge_prm.output import atomic_file

    return nullcontext() if output is None else atomic_file(output)


def _counted(records: Iterator[Any], rows_on_stdout: bool) -> Iterator[Any]:
    """Count rows on stderr; the length of a file is not known before its end."""
    # Where results and progress share a terminal, the results are the progress.
    hidden = rows_on_stdout and sys.stdout.isatty()
    if verbosity.quiet() or hidden or not sys.stderr.isatty():
        yield from records
        return
    with click.progressbar(records, label="rows", file=sys.stderr, show_pos=True, length=None) as counted:
        yield from counted
