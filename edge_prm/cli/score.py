"""`edge-prm score` and `edge-prm rank`: a file of rows in, a line of JSON or a view for each row out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_prm.cli import options as shared
from edge_prm.cli.command import SCORING, Command, option, options
from edge_prm.cli.row_files import RowReport, bundle_and_rows, output, reading_options, write_rows

if TYPE_CHECKING:
    from edge_prm.prm import PRM
    from edge_prm.records import Record
    from edge_prm.score import Ranking, Score

_prune = options(
    option("--early-stop", section=SCORING, is_flag=True,
           help="Prune candidates that cannot win any more (aggregate min or prod)."),
    option("--prune-below", section=SCORING, type=click.FloatRange(0, 1),
           help="Prune a candidate at its first step with a reward below this."),
)  # fmt: skip


@click.command(
    cls=Command,
    examples=(
        "edge-prm score prm-int8 traces.jsonl",
        "edge-prm score prm-int8 traces.jsonl --json -o scores.jsonl",
        "cat traces.jsonl | edge-prm score prm-int8 - --split lines --aggregate min",
    ),
)
@bundle_and_rows
@reading_options
@shared.engine
@shared.aggregate
@shared.weak
@output
@shared.as_json
def score(
    bundle: Path, rows: Path, aggregate: str | None, split: str, weak_below: float, strict: bool, output: Path | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Score every step of every row.

    BUNDLE is a folder that `edge-prm export` wrote. ROWS is a file of any usual format (`edge-prm rows` shows how it is
    read): JSON Lines, a JSON list, CSV, Parquet, or gzip of these; - is standard input. A row with several candidates
    is scored once for each of them.

    With --json, one line for each score. Exit code 1: some rows or candidates have no score.
    """

    def lines_of(prm: PRM, record: Record, report: RowReport) -> Iterator[str]:
        for index, notes, result in _scores(prm, record, report, split, aggregate):
            yield from _score_lines(record, index, result, notes, weak_below, as_json)

    write_rows(bundle, rows, lines_of, strict, split, output, given)


@click.command(
    cls=Command,
    examples=(
        "edge-prm rank prm-int8 candidates.jsonl",
        "edge-prm rank prm-int8 candidates.jsonl --aggregate min --early-stop --json",
    ),
)
@bundle_and_rows
@reading_options
@shared.engine
@shared.aggregate
@_prune
@shared.weak
@output
@shared.as_json
def rank(
    bundle: Path, rows: Path, aggregate: str | None, split: str, weak_below: float, early_stop: bool,
    prune_below: float | None, strict: bool, output: Path | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Rank the candidates of every row; the prompt is computed once.

    ROWS is a file as `edge-prm score` reads it, with rows that hold candidates (or generations, responses,
    completions). A candidate that cannot be scored has no score and a reason; the others are ranked.

    With --json, one line for each row. Exit code 1: some rows or candidates have no score.
    """
    from edge_prm.aggregate import check_early_stop
    from edge_prm.manifest import read_manifest

    if early_stop:
        check_early_stop(aggregate or read_manifest(bundle).head.default_aggregate)

    def lines_of(prm: PRM, record: Record, report: RowReport) -> Iterator[str]:
        if not record.several:
            report.failed(record, f"it has one answer ({record.format}) and no candidates; `edge-prm score` scores it")
            return
        candidates, notes = _candidates(prm, record, split, report)
        result = prm.rank(
            record.prompt, candidates, aggregate=aggregate, early_stop=early_stop, prune_below=prune_below
        )  # fmt: skip
        for index, error in sorted(result.errors.items()):
            report.failed(record, str(error).removeprefix(f"candidate {index}: "), f"candidate {index}")
        report.done += any(score is not None for score in result.candidates)
        yield from _ranking_lines(record, result, notes, weak_below, as_json)

    write_rows(bundle, rows, lines_of, strict, split, output, given)


def _scores(
    prm: PRM, record: Record, report: RowReport, split: str, aggregate: str | None
) -> Iterator[tuple[int, list[str], Score]]:
    """Index, notes and score of each candidate of a record that can be scored."""
    from edge_prm.errors import InputError

    for index, candidate in enumerate(record.candidates):
        part = f"candidate {index}" if record.several else ""
        try:
            trajectory = candidate.trajectory(record.prompt, split, prm.separator)
            notes = report.notes_of(prm, record, trajectory, candidate.steps, part)
            result = prm.score(trajectory, aggregate=aggregate)
        except InputError as error:
            report.failed(record, str(error), part)
            continue
        report.done += 1
        yield index, notes, result


def _score_lines(
    record: Record, index: int, result: Score, notes: list[str], weak_below: float, as_json: bool
) -> Iterator[str]:
    from edge_prm.cli.view import score_lines
    from edge_prm.score import json_line

    if as_json:
        head = {"id": record.id} | ({"candidate": index} if record.several else {})
        yield json_line(head | result.as_dict() | ({"notes": notes} if notes else {}))
    else:
        yield from score_lines(f"{record.id}/{index}" if record.several else record.id, result, weak_below)


def _ranking_lines(
    record: Record, result: Ranking, notes: list[str], weak_below: float, as_json: bool
) -> Iterator[str]:
    from edge_prm.cli.view import ranking_lines
    from edge_prm.score import json_line

    if as_json:
        yield json_line({"id": record.id} | result.as_dict() | ({"notes": notes} if notes else {}))
    else:
        yield from ranking_lines(record.id, result, weak_below)


def _candidates(prm: PRM, record: Record, split: str, report: RowReport) -> tuple[list[Any], list[str]]:
    """The trajectory of each candidate, or the error of one that has none; and the notes on how they were read."""
    from edge_prm.errors import InputError

    candidates: list[Any] = []
    notes: list[str] = []
    for index, candidate in enumerate(record.candidates):
        try:
            trajectory = candidate.trajectory(record.prompt, split, prm.separator)
            notes += report.notes_of(prm, record, trajectory, candidate.steps, f"candidate {index}")
            candidates.append(trajectory)
        except InputError as error:
            candidates.append(error)
    return candidates, list(dict.fromkeys(notes))
