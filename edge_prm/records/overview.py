"""How a file of rows is read: the first rows in full, and counts over all of them. Loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_prm.errors import InputError
from edge_prm.records.record import BadRow, Candidate, Record
from edge_prm.split import other_split, splitter
from edge_prm.trajectory import Trajectory

SCHEMA = 1


@dataclass(frozen=True)
class SeenCandidate:
    """A candidate as it would be scored; `trajectory` is None where it cannot be, for the reason in `error`."""

    trajectory: Trajectory | None
    error: str
    candidate: Candidate

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        steps = () if self.trajectory is None else self.trajectory.steps
        return {
            "steps": [{"text": step.text, "kind": step.kind, "place": step.place} for step in steps],
            "labels": None if self.candidate.labels.right is None else list(self.candidate.labels.right),
            "correct": self.candidate.correct,
            "error": self.error or self.candidate.labels.missing or None,
        }


@dataclass
class Counts:
    """Counts over a file. `labelled`: candidates with a label for each step. `one_step`: candidates that are one step
    by this splitting, and more by another."""

    rows: int = 0
    candidates: int = 0
    steps: int = 0
    labelled: int = 0
    one_step: int = 0


@dataclass
class Overview:
    """Counts over a file, and its first rows. `bad` and `left_out` count reasons: of rows and candidates that cannot be
    scored, and of labels and parts that are not read."""

    name: str
    counts: Counts = field(default_factory=Counts)
    formats: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first: list[tuple[Record | BadRow, list[SeenCandidate]]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA,
            "file": self.name,
            **asdict(self.counts),
            "formats": dict(self.formats),
            "bad": dict(self.bad),
            "left_out": dict(self.left_out),
            "first": [_row(record, seen) for record, seen in self.first],
        }


def overview(records: Iterable[Record | BadRow], split: str, separator: str | None, limit: int, name: str) -> Overview:
    """Read all records, and keep the first `limit` of them; `separator` is a bundle's own, where one is given."""
    splitter(split)
    found = Overview(name)
    for record in records:
        found.counts.rows += 1
        seen: list[SeenCandidate] = []
        if isinstance(record, BadRow):
            found.bad[record.reason] += 1
        else:
            seen = [_seen(candidate, record, split, separator) for candidate in record.candidates]
            _count(found, record, seen)
        if len(found.first) < limit:
            found.first.append((record, seen))
    return found


def _seen(candidate: Candidate, record: Record, split: str, separator: str | None) -> SeenCandidate:
    try:
        return SeenCandidate(candidate.trajectory(record.prompt, split, separator), "", candidate)
    except InputError as error:
        return SeenCandidate(None, str(error), candidate)


def _count(found: Overview, record: Record, seen: list[SeenCandidate]) -> None:
    found.formats[record.format] += 1
    found.left_out.update(record.notes)
    for one in seen:
        if one.trajectory is None:
            found.bad[one.error] += 1
            continue
        found.counts.candidates += 1
        steps = one.trajectory.steps
        found.counts.steps += len(steps)
        labels = one.candidate.labels
        found.counts.labelled += labels.right is not None and not labels.missing
        if labels.missing:
            found.left_out[f"labels: {labels.missing}"] += 1
        if isinstance(one.candidate.steps, str):
            found.counts.one_step += bool(other_split(one.candidate.steps, len(steps)))


def _row(record: Record | BadRow, seen: list[SeenCandidate]) -> dict[str, Any]:
    facts: dict[str, Any] = {"place": record.place, "id": record.id}
    if isinstance(record, BadRow):
        return facts | {"error": record.reason}
    return facts | {
        "format": record.format,
        "prompt": record.prompt,
        "candidates": [one.as_dict() for one in seen],
        "left_out": list(record.notes),
    }
