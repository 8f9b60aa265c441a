"""Score a file of answers: `python score_file.py BUNDLE ROWS.jsonl RESULTS.jsonl`.

The same as `edge-prm score BUNDLE ROWS.jsonl --json`, as a program to build on: it reads rows of any format that
edge-prm knows, scores them in constant memory, and goes on after a row that cannot be scored.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import edge_prm
from edge_prm.records import BadRow, read_records


def score_file(bundle: str, rows: str, results: str) -> Counter[str]:
    """Write one JSON line for each answer; return counts of what was scored and what was left out."""
    counts: Counter[str] = Counter()
    waiting: list[str] = []  # places of the trajectories that score_many took

    def trajectories() -> Iterator[edge_prm.Trajectory]:
        for record in read_records(rows):
            if isinstance(record, BadRow):
                leave_out(record.place, record.reason)
                continue
            for candidate in record.candidates:
                try:
                    trajectory = candidate.trajectory(record.prompt, "auto", prm.separator)
                except edge_prm.errors.InputError as error:
                    leave_out(record.place, str(error))
                    continue
                waiting.append(record.place)
                yield trajectory

    def leave_out(place: str, reason: str) -> None:
        counts["left out"] += 1
        print(f"{place} left out: {reason}", file=sys.stderr)

    with edge_prm.load(bundle) as prm, Path(results).open("w", encoding="utf-8") as file:
        # score_many takes the next trajectory only when its score is asked for, so a file of any size fits in memory.
        for score in prm.score_many(trajectories(), on_error="return"):
            place = waiting.pop()
            if isinstance(score, edge_prm.EdgePRMError):  # such as a text that is longer than the context
                leave_out(place, str(score))
                continue
            counts["scored"] += 1
            file.write(json.dumps({"place": place, **score.as_dict()}) + "\n")
    return counts


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__.splitlines()[0])
    counts = score_file(*sys.argv[1:])
    print(f"{counts['scored']} answers scored, {counts['left out']} left out; results in {sys.argv[3]}")
