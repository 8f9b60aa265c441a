"""`edge-prm score`, `rank` and `rows`: a file of rows in, a line or a view for each out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from edge_prm.cli import options as option
from edge_prm.exit_codes import EXIT_BAD_INPUT, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from edge_prm.prm import PRM
    from edge_prm.records import BadRow, Record
    from edge_prm.trajectory import Trajectory

_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_rows_file = click.argument("rows", metavar="ROWS|-", type=click.Path(path_type=Path, allow_dash=True))
_output = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write to this file, complete or not at all."
)


@click.command()
@_bundle
@_rows_file
@option.aggregate
@option.split
@option.fields
@option.weak
@option.threads
@option.device
@option.gpu_layers
@option.strict
@_output
@option.as_json
def score(
    bundle: Path, rows: Path, aggregate: str | None, split: str, threshold: float, strict: bool, output: Path | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Score every step of every row.

    ROWS is a file of any usual format (`edge-prm rows` shows how it is read): JSON Lines, a JSON list, CSV, Parquet,
    or gzip of these. A row with several candidates is scored once for each of them.
    """
    from edge_prm.cli.view import score_lines
    from edge_prm.errors import InputError
    from edge_prm.score import json_line

    def each(prm: PRM, record: Record, job: _Job) -> Iterator[str]:
        for index, candidate in enumerate(record.candidates):
            place = f"candidate {index}" if record.several else ""
            try:
                trajectory = candidate.trajectory(record.prompt, split, prm.separator)
                notes = job.look_at(prm, record, trajectory, candidate.steps, place)
                result = prm.score(trajectory, aggregate=aggregate)
            except InputError as error:
                job.failed(record, str(error), place)
                continue
            job.done += 1
            if as_json:
                head = {"id": record.id} | ({"candidate": index} if record.several else {})
                yield json_line(head | result.as_dict() | ({"notes": notes} if notes else {}))
            else:
                yield from score_lines(f"{record.id}/{index}" if record.several else record.id, result, threshold)

    _each_row(bundle, rows, each, _Job(str(rows), strict), split, output, given)


@click.command()
@_bundle
@_rows_file
@option.aggregate
@option.split
@option.fields
@option.weak
@click.option("--early-stop", is_flag=True, help="Give candidates up that cannot win any more (min, prod).")
@click.option("--give-up-below", type=click.FloatRange(0, 1), help="Give a candidate up at its first step below this.")
@option.threads
@option.device
@option.gpu_layers
@option.strict
@_output
@option.as_json
def rank(
    bundle: Path, rows: Path, aggregate: str | None, split: str, threshold: float, early_stop: bool,
    give_up_below: float | None, strict: bool, output: Path | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Rank the candidates of every row; the prompt is computed once.

    ROWS is a file as `edge-prm score` takes it, with rows that hold candidates (or generations, responses,
    completions). A candidate that cannot be scored has no score and a reason; the others are ranked.
    """
    from edge_prm.aggregate import check_early_stop
    from edge_prm.cli.view import ranking_lines
    from edge_prm.manifest import read_manifest
    from edge_prm.score import json_line

    if early_stop:
        check_early_stop(aggregate or read_manifest(bundle).head.default_aggregate)

    def each(prm: PRM, record: Record, job: _Job) -> Iterator[str]:
        if not record.several:
            job.failed(record, f"it has one answer ({record.format}) and no candidates; `edge-prm score` scores it", "")
            return
        tried, notes = _candidates(prm, record, split, job)
        result = prm.rank(record.prompt, tried, aggregate=aggregate, early_stop=early_stop, prune_below=give_up_below)
        for index, error in sorted(result.errors.items()):
            job.failed(record, str(error).removeprefix(f"candidate {index}: "), f"candidate {index}")
        job.done += any(score is not None for score in result.candidates)
        if as_json:
            yield json_line({"id": record.id} | result.as_dict() | ({"notes": notes} if notes else {}))
        else:
            yield from ranking_lines(record.id, result, threshold)

    _each_row(bundle, rows, each, _Job(str(rows), strict), split, output, given)


def _candidates(prm: PRM, record: Record, split: str, job: _Job) -> tuple[list[Any], list[str]]:
    """The trajectory of each candidate; the error of one that cannot be a trajectory."""
    from edge_prm.errors import InputError

    tried: list[Any] = []
    notes: list[str] = []
    for index, candidate in enumerate(record.candidates):
        try:
            trajectory = candidate.trajectory(record.prompt, split, prm.separator)
            notes += job.look_at(prm, record, trajectory, candidate.steps, f"candidate {index}")
            tried.append(trajectory)
        except InputError as error:
            tried.append(error)
    return tried, list(dict.fromkeys(notes))


@dataclass
class _Job:
    """What a run over a file has done: rows scored, what failed, what was left out, and what was pointed out."""

    name: str
    strict: bool
    done: int = 0
    bad: int = 0
    one_step: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def failed(self, record: Record | BadRow, reason: str, part: str) -> None:
        """Report a row or a candidate that has no score; under `strict` the run ends."""
        from edge_prm.printable import printable

        self.bad += 1
        where = f"{record.place}, {part}" if part else record.place
        click.echo(f"Error: {self.name}, {where}: {printable(reason)}", err=True)  # the reason may quote the row
        if self.strict:
            sys.exit(EXIT_BAD_INPUT)

    def look_at(self, prm: PRM, record: Record, trajectory: Trajectory, steps: object, part: str) -> list[str]:
        """Count and return what is to be known about how a text was read; the first of a kind is pointed out."""
        from edge_prm.split import other_split

        notes = [f"left out: {note}" for note in record.notes]
        if trajectory.cut_at:
            notes.append(f"cut at {trajectory.cut_at}")
        if token := prm.special_at_end(trajectory.completion):
            notes.append(f"the text ends with {token}, which is scored as text")
        self.left_out.update(notes)
        hint = other_split(steps, len(trajectory.steps)) if isinstance(steps, str) else ""
        if hint:
            if not self.one_step:
                where = f"{record.place}, {part}" if part else record.place
                click.echo(f"Note: {self.name}, {where}: the completion gives one step; {hint}", err=True)
            self.one_step += 1
            notes.append(f"one step; {hint}")
        return notes

    def finish(self) -> None:
        """Say what was done and what was not; exit code 1 when something failed."""
        from edge_prm.printable import printable

        if self.one_step > 1:
            click.echo(f"Note: {self.one_step} texts gave one step where another split gives more", err=True)
        for note, count in self.left_out.most_common(20):
            click.echo(f"Note: {printable(note)} ({count} {'row' if count == 1 else 'rows'})", err=True)
        if self.bad:
            click.echo(f"{self.done} rows done, {self.bad} bad left out", err=True)
            sys.exit(EXIT_SOME_FAILED)


def _each_row(
    bundle: Path,
    rows: Path,
    each: Callable[[PRM, Record, _Job], Iterator[str]],
    job: _Job,
    split: str,
    output: Path | None,
    given: dict[str, Any],
) -> None:
    """Run `each` on every record of a file and write its lines; what is bad is reported with its place and counted."""
    from edge_prm.output import check_file
    from edge_prm.prm import load
    from edge_prm.records import BadRow
    from edge_prm.split import splitter

    splitter(split)
    if output is not None:
        check_file(output)
    records = _open(rows, option.take_fields(given))
    with load(bundle, **given) as prm, _writer(output) as file:
        for record in _counted(records, quiet=output is None):
            if isinstance(record, BadRow):
                job.failed(record, record.reason, "")
                continue
            for line in _guarded(each(prm, record, job), record, job):
                click.echo(line, file=file)
    job.finish()


def _guarded(lines: Iterator[str], record: Record, job: _Job) -> Iterator[str]:
    """An error of a row costs this row only."""
    from edge_prm.errors import BackendError, InputError

    try:
        yield from lines
    except (InputError, BackendError) as error:
        job.failed(record, str(error), "")


def _open(rows: Path, fields: Any) -> Iterator[Record | BadRow]:
    from edge_prm.records import read_records

    if str(rows) == "-":
        return read_records(sys.stdin.buffer, fields, name="standard input")
    return read_records(rows, fields)


def _writer(output: Path | None) -> AbstractContextManager[IO[str] | None]:
    from edge_prm.output import atomic_file

    return nullcontext() if output is None else atomic_file(output)


def _counted(records: Iterator[Any], quiet: bool) -> Iterator[Any]:
    """Count rows on stderr as they go by; a file's length is not known before its end."""
    if not sys.stderr.isatty() or (quiet and sys.stdout.isatty()):  # on one terminal, the rows are the progress
        yield from records
        return
    with click.progressbar(records, label="rows", file=sys.stderr, show_pos=True, length=None) as counted:
        yield from counted


@click.command("rows")
@_rows_file
@option.split
@option.fields
@click.option("--bundle", type=click.Path(path_type=Path), help="Cut completions at this bundle's own separator too.")
@click.option("--limit", type=click.IntRange(min=0), default=3, show_default=True, help="Rows to show in full.")
@option.as_json
def show_rows(rows: Path, split: str, bundle: Path | None, limit: int, as_json: bool, **given: Any) -> None:
    """Show how a file of rows is read, before any scoring.

    Shows the first rows in full (format, prompt, steps, candidates, labels, what is left out) and counts the others.
    No model is loaded.
    """
    from edge_prm.cli.view_rows import overview_lines
    from edge_prm.records.overview import overview
    from edge_prm.score import json_line

    separator = None
    if bundle is not None:
        from edge_prm.manifest import read_manifest

        separator = read_manifest(bundle).input.separator_text
    found = overview(_open(rows, option.take_fields(given)), split, separator, limit, str(rows))
    if as_json:
        click.echo(json_line(found.as_dict()))
    else:
        for line in overview_lines(found):
            click.echo(line)
    if found.bad:
        sys.exit(EXIT_SOME_FAILED)
