"""Benchmark rows of the usual files, as traces: a trajectory, what it belongs to, and the labels that the file has.

    edge-prm rows     {problem | prompt, steps | completion}                       no labels
    candidates        {problem, candidates: [{text | steps, correct, answer}]}     is each answer right?
    ProcessBench      {problem, steps, label, final_answer_correct}                first wrong step, -1 for none
    PRM800K           {question: {problem}, label: {steps: [{completions: …}]}}    rating of each step; -1 is wrong
    PRMBench          {modified_question, modified_process, error_steps}           wrong steps, counted from 1

A kind is told by its fields, row by row. Bad rows are errors with their line number: a benchmark that leaves rows out
measures something else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from edge_prm import Trajectory
from edge_prm.errors import InputError

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Trace:
    """One trajectory to be scored.

    `problem`: candidates of one problem share it; any other trace is a problem of its own. `right`: for each step,
    whether it and all before it are right; None where the file does not say. `first_wrong`: ProcessBench's label.
    `correct`: is its final answer right, and `answer`: that answer, both for best of N.
    """

    id: str
    problem: str
    trajectory: Trajectory
    right: tuple[bool | None, ...] | None = None
    first_wrong: int | None = None
    correct: bool | None = None
    answer: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(step.text for step in self.trajectory.steps)


@dataclass(frozen=True)
class Data:
    """The traces of a file (or of a part of it), and the hash that tells them from all others."""

    name: str
    traces: tuple[Trace, ...]
    split: str

    @cached_property
    def sha256(self) -> str:
        """Of ids and texts, exactly as they are scored."""
        digest = hashlib.sha256()
        for trace in self.traces:
            trajectory = trace.trajectory
            parts = [trace.id, trajectory.prompt, trajectory.completion, *(len(s.text) for s in trajectory.steps)]
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    def by_problem(self) -> list[list[int]]:
        """Indices of the traces of each problem, in the order of the file."""
        groups: dict[str, list[int]] = {}
        for index, trace in enumerate(self.traces):
            groups.setdefault(trace.problem, []).append(index)
        return list(groups.values())

    def first(self, count: int | None) -> Data:
        """The first `count` traces; all of them for None."""
        return self if count is None else Data(self.name, self.traces[:count], self.split)


def read_data(path: str | Path, *, limit: int | None = None, split: str = "auto") -> Data:
    """Read the first `limit` traces of a JSONL file (or a JSON list).

    `split` divides completions into steps: blank, lines, a regular expression, or auto: at blank lines when any
    completion of the file has one, else at lines. Raises InputError with the line of the first bad row, and for a file
    without rows.
    """
    path = Path(path)
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path} holds no rows; nothing can be measured on it")
    chosen = _choose_split(rows) if split == "auto" else split
    traces = tuple(islice(_traces(path, rows, chosen), limit))
    ids = [trace.id for trace in traces]
    if len(set(ids)) < len(ids):
        twice = next(id_ for index, id_ in enumerate(ids) if id_ in ids[:index])
        raise InputError(f"{path}: two rows have the id {twice!r}; results are told apart by it")
    return Data(path.name, traces, chosen)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if text.lstrip().startswith("["):
        values: list[tuple[int, Any]] = list(enumerate(_json(path, 1, text), start=1))
    else:
        lines = enumerate(text.split("\n"), start=1)
        values = [(number, _json(path, number, line)) for number, line in lines if line.strip()]
    for number, value in values:
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {number}: holds {type(value).__name__}, not an object")
        yield number, value


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error})") from None


def _traces(path: Path, rows: Sequence[tuple[int, dict[str, Any]]], split: str) -> Iterator[Trace]:
    for number, row in rows:
        try:
            yield from _read_row(number, row, split)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}, line {number}: not a row that is known ({error!r})") from None


def _read_row(number: int, row: dict[str, Any], split: str) -> Iterator[Trace]:
    if "candidates" in row:
        return _candidates(number, row, split)
    if "modified_process" in row:
        return _prmbench(number, row)
    if isinstance(row.get("question"), dict) and isinstance(row.get("label"), dict):
        return _prm800k(number, row)
    return _steps(number, row, split)


def _steps(number: int, row: dict[str, Any], split: str) -> Iterator[Trace]:
    """ProcessBench's rows, and those of `edge-prm score`."""
    from edge_prm.rows import COMPLETION_FIELDS, PROMPT_FIELDS

    prompt = next((row[name] for name in PROMPT_FIELDS if name in row), None)
    steps = next((row[name] for name in ("steps", *COMPLETION_FIELDS) if name in row), None)
    if prompt is None or steps is None:
        raise InputError(f"no problem and steps; its fields are {', '.join(row) or 'none'}")
    trajectory = Trajectory.of(prompt, steps, split=split)
    first_wrong, count = row.get("label"), len(trajectory.steps)
    right = None
    if first_wrong is not None:
        if type(first_wrong) is not int or not -1 <= first_wrong < count:
            raise InputError(f"label is {first_wrong!r}; it is the index of the first wrong of {count} steps, or -1")
        right = tuple(first_wrong == -1 or index < first_wrong for index in range(count))
    id_ = str(row.get("id", number))
    yield Trace(id_, id_, trajectory, right, first_wrong, row.get("final_answer_correct"))


def _candidates(number: int, row: dict[str, Any], split: str) -> Iterator[Trace]:
    prompt = row["problem"] if "problem" in row else row["prompt"]
    for index, candidate in enumerate(row["candidates"]):
        fields = candidate if isinstance(candidate, dict) else {"text": candidate}
        steps = fields["text"] if "text" in fields else fields["steps"]
        trajectory = Trajectory.of(prompt, steps, split=split)
        correct = fields.get("correct")
        if correct is not None and not isinstance(correct, bool):
            raise InputError(f"candidate {index}: correct is {correct!r}, not true or false")
        answer = str(fields["answer"]) if fields.get("answer") is not None else last_number(trajectory.completion)
        problem = str(row.get("id", number))
        yield Trace(f"{problem}/{index}", problem, trajectory, None, None, correct, answer)


def _prm800k(number: int, row: dict[str, Any]) -> Iterator[Trace]:
    """The path that the labelers took; it ends at the first step they did not go on from. A neutral step is right."""
    texts: list[str] = []
    ratings: list[int | None] = []
    for step in row["label"]["steps"]:
        chosen, completions = step.get("chosen_completion"), step.get("completions") or []
        picked = step.get("human_completion") if chosen is None else completions[chosen]
        if picked is None and completions:
            picked = completions[0]
        if picked is None:
            break
        texts.append(picked["text"])
        ratings.append(picked.get("rating"))
        if chosen is None and step.get("human_completion") is None:
            break
    right: list[bool | None] = []
    for rating in ratings:
        so_far = not right or right[-1]
        right.append(None if rating is None or so_far is None else bool(so_far and rating >= 0))
    question = row["question"]["problem"]
    trajectory = Trajectory.of(question, texts)
    labels = None if None in right else [label for label in right if label is not None]
    first_wrong = None if labels is None else (labels.index(False) if False in labels else -1)
    id_ = str(row.get("id", number))
    yield Trace(id_, id_, trajectory, tuple(right), first_wrong)


def _prmbench(number: int, row: dict[str, Any]) -> Iterator[Trace]:
    """The modified solution; its wrong steps are counted from 1."""
    wrong = set(row["error_steps"])
    question = row.get("modified_question") or row["original_question"]
    trajectory = Trajectory.of(question, row["modified_process"])
    count = len(trajectory.steps)
    if not all(type(step) is int and 1 <= step <= count for step in wrong):
        raise InputError(f"error_steps are {sorted(wrong, key=str)}; steps are counted from 1 to {count}")
    first_wrong = min(wrong) - 1 if wrong else -1
    right = tuple(not wrong or index < first_wrong for index in range(count))
    id_ = str(row.get("idx", row.get("id", number)))
    yield Trace(id_, id_, trajectory, right, first_wrong)


def _choose_split(rows: Sequence[tuple[int, dict[str, Any]]]) -> str:
    from edge_prm.rows import COMPLETION_FIELDS

    texts = [
        text
        for _, row in rows
        for text in (
            *(row.get(name) for name in COMPLETION_FIELDS),
            *(c.get("text") if isinstance(c, dict) else c for c in row.get("candidates") or ()),
        )
        if isinstance(text, str)
    ]
    return "blank" if not texts or any(_BLANK_LINE.search(text) for text in texts) else "lines"


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands' commas and trailing zeros: what majority vote counts as answer."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
