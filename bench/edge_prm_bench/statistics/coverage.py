"""Which traces a number is computed on: what was left out is counted and named, and columns share their traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edge_prm_bench.data import Data

MOST_REASONS = 8
"""Distinct reasons of one file that are listed; the rest is summed up."""

_UNREADABLE = "rows that cannot be read"

Rewards = Sequence[Sequence[float] | None]
"""Rewards of each trace of a file; None where a trace was not scored."""


class Missing(NamedTuple):
    """Why a trace has no rewards: the kind of reason, which is counted, and what is particular to this trace."""

    kind: str
    detail: str = ""


class Scored(NamedTuple):
    """Rewards of a file's traces, and the aggregate that turns a trace's into its score.

    `missing` holds the reason for each index of `rewards` that is None.
    """

    name: str
    rewards: Rewards
    aggregate: str
    missing: Mapping[int, Missing] = {}

    @property
    def indices(self) -> frozenset[int]:
        """Indices of the traces that have rewards."""
        return frozenset(index for index, rewards in enumerate(self.rewards) if rewards is not None)

    def only(self, kept: Iterable[int]) -> Scored:
        """The same with the rewards of these traces only."""
        kept = set(kept)
        return self._replace(rewards=[row if index in kept else None for index, row in enumerate(self.rewards)])


@dataclass(frozen=True)
class Omission:
    """What numbers do not include: `count` rows, traces, problems or lengths of `data` for one `reason`.

    `of` names the bundle or reference that left it out, "" where it concerns all of them. `examples` are at most three
    places with what is particular to each.
    """

    data: str
    of: str
    count: int
    reason: str
    examples: tuple[str, ...] = ()

    @property
    def unreadable(self) -> bool:
        """Whether these are rows that could not be read."""
        return self.reason.startswith(_UNREADABLE)


def shared(columns: Iterable[Scored]) -> frozenset[int]:
    """Indices of the traces that all columns have scored; a column without any trace is not counted."""
    sets = [column.indices for column in columns if column.indices]
    return frozenset.intersection(*sets) if sets else frozenset()


def of_file(data: Data, total: int, labelled: bool) -> list[Omission]:
    """What a file leaves out for every column; `total` is the number of its traces, `labelled`: labels are needed."""
    unreadable = Counter(entry.reason for entry in _left_out(data))
    made = []
    for reason, count in unreadable.most_common(MOST_REASONS):
        places = tuple(entry.place for entry in _left_out(data) if entry.reason == reason)[:3]
        made.append(Omission(data.name, "", count, f"{_UNREADABLE}: {reason}", places))
    if rest := sum(unreadable.values()) - sum(omission.count for omission in made):
        made.append(Omission(data.name, "", rest, f"{_UNREADABLE}, for other reasons"))
    parts = Counter(entry.reason for entry in getattr(data, "parts", ()))
    for reason, count in parts.most_common(MOST_REASONS):
        places = tuple(entry.place for entry in data.parts if entry.reason == reason)[:3]
        made.append(Omission(data.name, "", count, f"left out of rows that are read: {reason}", places))
    if total > len(data.traces):
        more = f"traces beyond the first {len(data.traces)}, which are measured; --limit 0 takes all"
        made.append(Omission(data.name, "", total - len(data.traces), more))
    return made + (_unlabelled(data) if labelled else [])


def _left_out(data: Data) -> Sequence[Any]:
    """Entries with `place` and `reason`."""
    found: Sequence[Any] = getattr(data, "left_out", ())
    return found


def _unlabelled(data: Data) -> list[Omission]:
    """Traces of a file of labels that have none which can be used."""
    if all(trace.first_wrong is None and trace.correct is None for trace in data.traces):
        return []
    reasons: dict[str, list[str]] = {}
    for trace in data.traces:
        why = getattr(trace, "unlabelled", "")
        if why or (trace.first_wrong is None and trace.correct is None):
            reasons.setdefault(why or "the row has no label", []).append(trace.id)
    return [
        Omission(data.name, "", len(ids), f"quality: traces without a usable label: {why}", tuple(ids[:3]))
        for why, ids in reasons.items()
    ]


def of_column(data: Data, column: Scored) -> list[Omission]:
    """Traces that one bundle or reference has no rewards for, by reason."""
    kinds: dict[str, list[str]] = {}
    for index, rewards in enumerate(column.rewards):
        if rewards is None:
            kind, detail = column.missing.get(index, Missing("traces that were not scored"))
            name = data.traces[index].id
            kinds.setdefault(kind, []).append(f"{name}: {detail}" if detail else name)
    return [Omission(data.name, column.name, len(places), kind, tuple(places[:3])) for kind, places in kinds.items()]


def of_sharing(data: Data, columns: Sequence[Scored], kept: frozenset[int], table: str) -> list[Omission]:
    """Traces that a column has and that its row of a table does not use, because another column lacks them."""
    return [
        Omission(data.name, column.name, len(left), f"{table}: traces that another row of this file has no reward for",
                 tuple(data.traces[index].id for index in sorted(left)[:3]))
        for column in columns
        if column.indices and (left := column.indices - kept)
    ]  # fmt: skip
