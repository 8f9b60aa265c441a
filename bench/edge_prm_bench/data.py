"""Rows of a file as traces: a trajectory, its problem, and the labels of the row.

`edge_prm.records` reads the rows, in any usual format. A row that cannot be read does not stop the
others: it is listed in `Data.skipped`. A trace without usable labels says why in `Trace.unlabelled`.
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

    `problem`: shared by the candidates of one problem; any other trace is a problem of its own. `right`: for each
    scored step, whether it and all steps before it are right; None where the row does not say. `first_wrong`: index
    of the first wrong step, -1 for none, None without labels. `correct`: whether its final answer is right, and
    `answer`: that answer, both for best of N. `unlabelled`: why labels of the row cannot be used, "" otherwise.
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
class Skipped:
    """A row, a candidate or a part of a row that is not used: its place in the file and the reason."""

    place: str
    reason: str


@dataclass(frozen=True)
class Data:
    """The traces of a file (or of a part of it), and their hash.

    `skipped` holds rows and candidates that could not be read, `skipped_parts` unused parts of rows that were read.
    `one_step` counts completions that gave one step where another split gives more.
    """

    name: str
    traces: tuple[Trace, ...]
    split: str
    skipped: tuple[Skipped, ...] = ()
    skipped_parts: tuple[Skipped, ...] = ()
    one_step: int = 0

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of ids, prompts, completions and the lengths of the steps: of all that is scored."""
        digest = hashlib.sha256()
        for trace in self.traces:
            trajectory = trace.trajectory
            scored = [trace.id, trajectory.prompt, trajectory.completion, *(len(s.text) for s in trajectory.steps)]
            digest.update(json.dumps(scored).encode())
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
    skipped: list[Skipped] = []
    skipped_parts: list[Skipped] = []
    one_step = 0
    for record in read_records(path, fields):
        if limit is not None and len(traces) >= limit:
            break
        if isinstance(record, BadRow):
            skipped.append(Skipped(record.place, record.reason))
            continue
        skipped_parts += [Skipped(record.place, note) for note in record.notes]
        entries = list(_traces(record, split, separators))
        traces += [entry for entry, _ in entries if isinstance(entry, Trace)]
        skipped += [entry for entry, _ in entries if isinstance(entry, Skipped)]
        one_step += sum(is_one_step for _, is_one_step in entries)
    if not traces:
        first = skipped[0] if skipped else Skipped("", "it holds no rows")
        raise InputError(f"{path}: none of {len(skipped)} rows can be read; {first.place}: {first.reason}")
    unique = tuple(_with_unique_ids(traces[:limit]))
    return Data(path.name, unique, split, tuple(skipped), tuple(skipped_parts), one_step)


def _with_unique_ids(traces: Sequence[Trace]) -> Iterator[Trace]:
    """The traces; the second with the same id gets #2, because results are distinguished by their ids."""
    seen: Counter[str] = Counter()
    for trace in traces:
        seen[trace.id] += 1
        yield trace if seen[trace.id] == 1 else replace(trace, id=f"{trace.id}#{seen[trace.id]}")


def _traces(record: Record, split: str, separators: Sequence[str]) -> Iterator[tuple[Trace | Skipped, bool]]:
    """Each candidate's trace, and whether it gave one step where another split gives more."""
    problem = str(record.id)
    for index, candidate in enumerate(record.candidates):
        id_ = f"{problem}/{index}" if record.several else problem
        try:
            text = candidate.steps if isinstance(candidate.steps, str) else ""
            separator = next((own for own in separators if cut_at(text, own)), None)
            trajectory = candidate.trajectory(record.prompt, split, separator)
            is_one_step = bool(other_split(text, len(trajectory.steps)))
            yield _trace(id_, problem, candidate, trajectory), is_one_step
        except InputError as error:
            part = f", candidate {index}" if record.several else ""
            yield Skipped(f"{record.place}{part}", str(error)), False


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
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    number = numbers[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
