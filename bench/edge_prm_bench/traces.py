"""Traces of a candidates file: one per candidate, in the file's order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edge_prm import Trajectory


@dataclass(frozen=True)
class Trace:
    id: str
    trajectory: Trajectory


def read_traces(path: Path, count: int | None = None, split: str = "lines") -> list[Trace]:
    """Return the first `count` candidates of a file of `{id, problem, candidates: [{text}]}` rows as traces."""
    return list(islice(_traces(path, split), count))


def _traces(path: Path, split: str) -> Iterator[Trace]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for index, candidate in enumerate(row["candidates"]):
                yield Trace(f"{row['id']}/{index}", Trajectory.of(row["problem"], candidate["text"], split=split))
