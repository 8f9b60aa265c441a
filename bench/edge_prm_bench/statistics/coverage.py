"""Which traces a figure is computed on: what it skips is counted with its reason, and the rows of a table share their
traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_prm_bench.data import Data, Skipped

MOST_REASONS = 8
"""Distinct reasons of one file that are listed; the others are summed up."""
MOST_EXAMPLES = 3

_UNREADABLE = "rows that cannot be read"

Rewards = Sequence[Sequence[float] | None]
"""Rewards of each trace of a file, in [0, 1]; None where a trace was not scored."""


class Missing(NamedTuple):
    """Why a trace has no rewards: the reason, by which traces are counted, and the detail of this trace."""

    reason: str
    detail: str = ""


class Scored(NamedTuple):
    """Rewards of a file's traces under the name of a bundle or reference, and the aggregate that makes a score of them.

    `missing` has the reason for each index of `rewards` that is None. `positions` has, by index, how many tokens of the
    text come up to each reward; a reference does not know them.
    """

    name: str
    rewards: Rewards
    aggregate: str
    missing: Mapping[int, Missing] = {}
    positions: Mapping[int, Sequence[int]] = {}

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
    """What figures do not include: `count` rows, traces, problems or lengths of the file `data`, for one `reason`.

    `by` names the bundle or reference that lacks them, "" where it concerns all of them. `examples`: at most three ids
    or places, with the detail of each.
    """

    data: str
    by: str
    count: int
    reason: str
    examples: tuple[str, ...] = ()

    @property
    def unreadable(self) -> bool:
        """Whether these are rows that could not be read."""
        return self.reason.startswith(_UNREADABLE)


def shared(columns: Iterable[Scored]) -> frozenset[int]:
    """Indices of the traces that all columns have rewards for; a column without any rewards is not counted."""
    sets = [column.indices for column in columns if column.indices]
    return frozenset.intersection(*sets) if sets else frozenset()


def of_file(data: Data, total: int, labelled: bool) -> list[Omission]:
    """What is skipped for every column; `total`: traces in the file; `labelled`: traces without labels are counted."""
    omissions = _by_reason(data.name, data.skipped, _UNREADABLE)
    if rest := len(data.skipped) - sum(omission.count for omission in omissions):
        omissions.append(Omission(data.name, "", rest, f"{_UNREADABLE}, for other reasons"))
    omissions += _by_reason(data.name, data.skipped_parts, "unused parts of rows that are read")
    if total > len(data.traces):
        more = f"traces beyond the first {len(data.traces)}, which are measured; --limit 0 takes all"
        omissions.append(Omission(data.name, "", total - len(data.traces), more))
    return omissions + (_unlabelled(data) if labelled else [])


def _by_reason(name: str, entries: Sequence[Skipped], prefix: str) -> list[Omission]:
    counts = Counter(entry.reason for entry in entries)
    return [
        Omission(
            name, "", count, f"{prefix}: {reason}",
            tuple(entry.place for entry in entries if entry.reason == reason)[:MOST_EXAMPLES],
        )
        for reason, count in counts.most_common(MOST_REASONS)
    ]  # fmt: skip


def _unlabelled(data: Data) -> list[Omission]:
    """Traces without a usable label, of a file that has labels."""
    if all(trace.first_wrong is None and trace.correct is None for trace in data.traces):
        return []
    reasons: dict[str, list[str]] = {}
    for trace in data.traces:
        if trace.unlabelled or (trace.first_wrong is None and trace.correct is None):
            reasons.setdefault(trace.unlabelled or "the row has no label", []).append(trace.id)
    return [
        Omission(data.name, "", len(ids), f"quality: traces without a usable label: {why}", tuple(ids[:MOST_EXAMPLES]))
        for why, ids in reasons.items()
    ]


def of_column(data: Data, column: Scored) -> list[Omission]:
    """Traces that one bundle or reference has no rewards for, by reason."""
    places: dict[str, list[str]] = {}
    for index, rewards in enumerate(column.rewards):
        if rewards is None:
            reason, detail = column.missing.get(index, Missing("traces that were not scored"))
            name = data.traces[index].id
            places.setdefault(reason, []).append(f"{name}: {detail}" if detail else name)
    return [
        Omission(data.name, column.name, len(ids), reason, tuple(ids[:MOST_EXAMPLES])) for reason, ids in places.items()
    ]


def of_sharing(data: Data, columns: Sequence[Scored], kept: frozenset[int], table: str) -> list[Omission]:
    """Traces that a column has rewards for and its row of `table` does not use, because another row lacks them."""
    return [
        Omission(
            data.name, column.name, len(unused), f"{table}: traces that another row of this file has no reward for",
            tuple(data.traces[index].id for index in sorted(unused)[:MOST_EXAMPLES]),
        )
        for column in columns
        if column.indices and (unused := column.indices - kept)
    ]  # fmt: skip
