"""Rows with labels of steps: ProcessBench, PRM800K, PRMBench, Math-Shepherd, and TRL's stepwise supervision.

Labels become `right`: for each step, whether it and all before it are right. What a row says and cannot be used is a
reason in `Labels.missing`; the row is then read without labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge_prm.errors import InputError
from edge_prm.records.answers import Read
from edge_prm.records.labels import cumulative, first_wrong, truths
from edge_prm.records.record import Candidate, Labels
from edge_prm.records.row import RowFields, message_text, sequence, text, texts, truth, whole

MATH_SHEPHERD_TAG = "ки"
_FIRST_STEP = re.compile(r"\s*Step 1\s*:")


def process_bench(row: RowFields) -> Read:
    """`label` is the index of the first wrong step, -1 for none."""
    steps = texts(row["steps"], "steps")
    notes: tuple[str, ...] = ()
    try:
        correct = truth(row.get("final_answer_correct"), "final_answer_correct")
    except InputError as error:
        correct, notes = None, (str(error),)
    return Read(
        row.prompt(), (Candidate(steps, correct=correct, labels=first_wrong(row["label"], len(steps))),), notes=notes
    )


def prmbench(row: RowFields) -> Read:
    """The modified solution; `error_steps` are counted from 1, and those that name no step are left out."""
    steps = texts(row["modified_process"], "modified_process")
    prompt = (
        row.prompt("modified_question", "original_question")
        if row.given.prompt
        else text(
            row.get("modified_question") or row.get("question") or row.get("original_question"), "modified_question"
        )
    )
    kind, number = row.get("classification"), row.get("idx", row.get("id"))
    id_ = number if kind is None or number is None else f"{kind}/{number}"
    labels, notes = _error_steps(row.get("error_steps"), len(steps))
    return Read(prompt, (Candidate(steps, labels=labels),), notes=notes, id=id_)


def _error_steps(found: Any, count: int) -> tuple[Labels, tuple[str, ...]]:
    try:
        if not isinstance(found, (list, tuple)):
            raise InputError(f"error_steps are {type(found).__name__}, not a list")
        wrong = {whole(step, "an item of error_steps") for step in found}
    except InputError as error:
        return Labels(missing=str(error)), ()
    inside = {step for step in wrong if 1 <= step <= count}
    outside = sorted(wrong - inside)
    notes = ("an error step that names no step",) * len(outside)
    if wrong and not inside:
        return Labels(missing=f"error_steps are {outside}, and there are {count} steps"), notes
    first = min(inside) - 1 if inside else count
    return Labels(tuple(index < first for index in range(count))), notes


def prm800k(row: RowFields) -> Read:
    """The path that the labelers took; it ends at the first step they did not go on from.

    A neutral step is right. A step that the labeler wrote has no rating and is right: it was written to go on from.
    """
    question = row["question"]
    prompt = (
        row.prompt()
        if row.given.prompt
        else text(question.get("problem") if isinstance(question, Mapping) else question, "problem of question")
    )
    steps: list[str] = []
    right: list[bool | None] = []
    missing = ""
    for step in sequence(row["label"].get("steps"), "steps of label"):
        picked, goes_on = _picked(step)
        if picked is None:
            break
        steps.append(text(picked.get("text"), f"text of step {len(steps)}"))
        rating = picked.get("rating")
        if rating is None and picked is step.get("human_completion"):
            rating = 1
        if rating is None and not missing:
            missing = f"step {len(steps) - 1} has no rating"
        right.append(None if rating is None else bool(rating >= 0))
        if not goes_on:
            break
    if not steps:
        raise InputError("label holds no step with a text")
    return Read(prompt, (Candidate(tuple(steps), labels=Labels(cumulative(right), missing)),))


def _picked(step: Any) -> tuple[Mapping[str, Any] | None, bool]:
    """The completion of a step that the path takes, and whether the labeler went on from it."""
    chosen, completions = step.get("chosen_completion"), step.get("completions") or []
    if chosen is not None:
        return completions[chosen], True
    if step.get("human_completion") is not None:
        return step["human_completion"], True
    return (completions[0] if completions else None), False


def is_math_shepherd(row: RowFields) -> bool:
    """`input` with tags after its steps, and `label` with + or - in their places."""
    question, label = row.get("input"), row.get("label")
    return isinstance(question, str) and isinstance(label, str) and ("task" in row or MATH_SHEPHERD_TAG in question)


def math_shepherd(row: RowFields) -> Read:
    """Problem and steps are one text; a step ends with a tag, and `label` is that text with + or - for each tag."""
    parts = text(row["input"], "input").split(MATH_SHEPHERD_TAG)
    found = list(_FIRST_STEP.finditer(parts[0]))
    if not found:
        raise InputError("input has no `Step 1:`, so problem and steps cannot be told apart")
    prompt, first = parts[0][: found[-1].start()], parts[0][found[-1].start() :]
    if row.given.prompt:
        prompt = row.prompt()
    tagged = [first, *parts[1:-1]] if len(parts) > 1 else []
    left = parts[-1] if len(parts) > 1 else first  # text after the last tag: a step that was not labelled
    signs, missing = _signs(parts, row["label"])
    right: list[bool | None] = [sign == "+" for sign in signs] if signs else [None] * len(tagged)
    if left.strip():
        tagged.append(left)
        right.append(None)
    labels = Labels(cumulative(right), missing or ("its last step has no tag" if None in right else ""))
    return Read(prompt, (Candidate(tuple(part.strip() for part in tagged), labels=labels),))


def _signs(parts: Sequence[str], label: Any) -> tuple[list[str], str]:
    """The sign that `label` has in the place of each tag, or the reason why it cannot be read."""
    signs, at = [], 0
    for part in parts[:-1]:
        at += len(part)
        sign = label[at : at + 1] if label.startswith(part, at - len(part)) else ""
        if sign not in ("+", "-") or not sign:
            return [], "label is not the text of input with + or - in the places of its tags"
        signs.append(sign)
        at += 1
    return signs, ""


def stepwise(row: RowFields) -> Read:
    """TRL's stepwise supervision, plain or as messages, and `steps` with `labels`: a truth value for each step."""
    name = "completions" if "completions" in row else "steps"
    steps = tuple(_step_text(item, index, name) for index, item in enumerate(sequence(row[name], name)))
    return Read(row.prompt(), (Candidate(steps, labels=truths(row["labels"], len(steps))),))


def _step_text(item: Any, index: int, name: str) -> str:
    if isinstance(item, (list, tuple)) and len(item) == 1:
        item = item[0]
    if isinstance(item, Mapping):
        return message_text(item, f"item {index} of {name}")[1]
    return text(item, f"item {index} of {name}")
