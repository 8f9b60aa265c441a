"""Rows of a file as traces: a trajectory, the problem that it belongs to, and the labels that the row has.

`edge_prm.records` reads the rows, in any usual format. A row that cannot be read costs only itself: it is named in
`Data.left_out`, and a trace without usable labels says why in `Trace.unlabelled`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edge_prm import Trajectory
from edge_prm.errors import InputError
from edge_prm.records import BadRow, Candidate, Fields, Record, read_records
from edge_prm.split import cut_at, other_split, splitter

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Trace:
    """A trajectory to be scored.

    `problem`: candidates of one problem share it; any other trace is a problem of its own. `right`: for each step that
    is scored, whether it and all before it are right; None where the row does not say. `first_wrong`: index of the
    first wrong step, -1 for none, None without labels. `correct`: whether its final answer is right, and `answer`: that
    answer, both for best of N. `unlabelled`: why labels of the row cannot be used, "" otherwise.
    """

    id: str
    problem: str
    trajectory: Trajectory
    right: tuple[bool | None, ...] | None = None
    first_wrong: int | None = None
    correct: bool | None = None
    answer: str | None = None
    unlabelled: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each step."""
        return tuple(step.text for step in self.trajectory.steps)


@dataclass(frozen=True)
class LeftOut:
    """A row, a candidate or a part of one that was left out: its place in the file and the reason."""

    place: str
    reason: str


@dataclass(frozen=True)
class Data:
    """The traces of a file (or of a part of it), and the hash that distinguishes them from all others.

    `left_out` holds rows and candidates that could not be read, `parts` what was left out of rows that were read.
    `one_step` counts completions that gave one step where another split gives more.
    """

    name: str
    traces: tuple[Trace, ...]
    split: str
    left_out: tuple[LeftOut, ...] = ()
    parts: tuple[LeftOut, ...] = ()
    one_step: int = 0

    @cached_property
    def sha256(self) -> str:
        """Of ids and texts, exactly as they are scored."""
        digest = hashlib.sha256()
        for trace in self.traces:
            trajectory = trace.trajectory
            parts = [trace.id, trajectory.prompt, trajectory.completion, *(len(s.text) for s in trajectory.steps)]
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    @property
    def unlabelled(self) -> Counter[str]:
        """Reasons why labels cannot be used, and how many traces each concerns."""
        return Counter(trace.unlabelled for trace in self.traces if trace.unlabelled)

    def by_problem(self) -> list[list[int]]:
        """Indices of the traces of each problem, in the order of the file."""
        groups: dict[str, list[int]] = {}
        for index, trace in enumerate(self.traces):
            groups.setdefault(trace.problem, []).append(index)
        return list(groups.values())

    def first(self, count: int | None) -> Data:
        """The first `count` traces; all of them for None."""
        return self if count is None else replace(self, traces=self.traces[:count])


def read_data(
    path: str | Path,
    *,
    limit: int | None = None,
    split: str = "auto",
    fields: Fields | None = None,
    separators: Sequence[str] = (),
) -> Data:
    """Read the first `limit` traces of a file of any usual format.

    `split` divides completions into steps, `fields` names fields in place of the detected ones, `separators` are step
    separators of the bundles that are measured: under `auto`, a completion that holds one is cut there. Raises
    InputError for a file that cannot be read at all, or of which no row can be.
    """
    splitter(split)
    path = Path(path)
    traces: list[Trace] = []
    left_out: list[LeftOut] = []
    parts: list[LeftOut] = []
    seen: Counter[str] = Counter()
    one_step = 0
    for record in read_records(path, fields):
        if limit is not None and len(traces) >= limit:
            break
        if isinstance(record, BadRow):
            left_out.append(LeftOut(record.place, record.reason))
            continue
        parts += [LeftOut(record.place, note) for note in record.notes]
        for trace, alone in _traces(record, split, separators):
            if isinstance(trace, LeftOut):
                left_out.append(trace)
                continue
            one_step += alone
            seen[trace.id] += 1
            again = "" if seen[trace.id] == 1 else f"#{seen[trace.id]}"  # results are told apart by their ids
            traces.append(replace(trace, id=trace.id + again) if again else trace)
    if not traces:
        first = left_out[0] if left_out else LeftOut("", "it holds no rows")
        raise InputError(f"{path}: none of {len(left_out)} rows can be read; {first.place}: {first.reason}")
    return Data(path.name, tuple(traces[:limit]), split, tuple(left_out), tuple(parts), one_step)


def _traces(record: Record, split: str, separators: Sequence[str]) -> Iterator[tuple[Trace | LeftOut, bool]]:
    """Each candidate's trace, and whether it gave one step where another split gives more."""
    problem = str(record.id)
    for index, candidate in enumerate(record.candidates):
        id_ = f"{problem}/{index}" if record.several else problem
        try:
            text = candidate.steps if isinstance(candidate.steps, str) else ""
            separator = next((own for own in separators if cut_at(text, own)), None)
            trajectory = candidate.trajectory(record.prompt, split, separator)
            alone = bool(other_split(text, len(trajectory.steps)))
            yield _trace(id_, problem, candidate, trajectory), alone
        except InputError as error:
            part = f", candidate {index}" if record.several else ""
            yield LeftOut(f"{record.place}{part}", str(error)), False


def _trace(id_: str, problem: str, candidate: Candidate, trajectory: Trajectory) -> Trace:
    right, first_wrong, unlabelled = _labels(candidate, trajectory)
    answer = candidate.answer if candidate.answer is not None else last_number(trajectory.completion)
    return Trace(id_, problem, trajectory, right, first_wrong, candidate.correct, answer, unlabelled)


def _labels(candidate: Candidate, trajectory: Trajectory) -> tuple[tuple[bool | None, ...] | None, int | None, str]:
    """Labels of the steps that are scored, the first wrong one, and why there is none."""
    labels = candidate.labels
    if labels.right is None:
        return None, None, labels.missing
    right = tuple(labels.right[step.place] for step in trajectory.steps)
    if labels.missing or None in right:
        return right, None, labels.missing or "a step has no label"
    wrong_place = labels.right.index(False) if False in labels.right else -1
    if wrong_place == -1:
        return right, -1, ""
    scored = [step.place for step in trajectory.steps]
    if wrong_place not in scored:
        return right, None, f"its first wrong step ({wrong_place}) is empty or a tag, and is not scored"
    return right, scored.index(wrong_place), ""


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands' commas and trailing zeros: what majority vote counts as answer."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
