"""What `edge-prm score` costs besides the model: `python benchmarks/row_speed.py BUNDLE`.

Short rows are read, split, scored and written as JSON, as the command does it. The same rows are then read and written
as JSON again, with the known scores in place of the model. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

import edge_prm
from edge_prm.demo.derivations import generate
from edge_prm.errors import EdgePRMError
from edge_prm.records import Record, read_records
from edge_prm.score import Score, json_line
from edge_prm_bench.engine import default_threads

SEED = 40_000_001


def short_rows(count: int) -> bytes:
    """JSON Lines of `count` short problems with their steps."""
    lines = [
        json.dumps({"id": index, "problem": derivation.problem, "steps": derivation.steps})
        for index, derivation in enumerate(generate(SEED, count))
    ]
    return "\n".join(lines).encode()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=default_threads, show_default=True)
def main(bundle: Path, rows: int, turns: int, threads: int) -> None:
    """Seconds of all of it, and of reader and JSON alone, in turns."""
    data = short_rows(rows)
    scores: list[Score] = []
    with edge_prm.load(bundle, threads=threads) as prm:

        def everything() -> None:
            scores.clear()
            scores.extend(_each(data, prm.score))

        def without_the_model() -> None:
            known = iter(scores)
            for _ in _each(data, lambda trajectory: next(known)):
                pass

        everything()  # a warm-up too
        timed: dict[str, list[float]] = {"all_s": [], "reader_and_json_s": []}
        for _ in range(turns):
            timed["all_s"].append(_seconds(everything))
            timed["reader_and_json_s"].append(_seconds(without_the_model))
    medians = {name: round(statistics.median(seconds), 3) for name, seconds in timed.items()}
    shares = [part / total for part, total in zip(timed["reader_and_json_s"], timed["all_s"], strict=True)]
    facts = {"rows": rows, "turns": turns, "threads": threads, **medians, "share": round(statistics.median(shares), 4)}
    click.echo(json.dumps(facts | {"share_range": [round(min(shares), 4), round(max(shares), 4)]}))


def _each(data: bytes, score: Callable[[edge_prm.Trajectory], Score]) -> list[Score]:
    found = []
    for record in read_records(io.BytesIO(data)):
        assert isinstance(record, Record), record.reason
        for candidate in record.candidates:
            result = score(candidate.trajectory(record.prompt, "auto", None))
            json_line({"id": record.id} | result.as_dict())
            found.append(result)
    return found


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    try:
        main()
    except EdgePRMError as error:
        sys.exit(f"Error: {error}")
