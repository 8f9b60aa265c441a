"""Labels of steps -> `right`: for each step, whether it and all before it are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_prm.errors import InputError
from edge_prm.records.record import Labels
from edge_prm.records.row import truth, whole


def labels_of(row: Mapping[str, Any], count: int) -> Labels:
    """Labels of a list of `count` steps: `labels`, a truth value for each, or `label`, the index of the first wrong."""
    if "labels" in row:
        return truths(row["labels"], count)
    return first_wrong(row["label"], count) if "label" in row else Labels()


def first_wrong(label: Any, count: int) -> Labels:
    """ProcessBench's label: the index of the first wrong of `count` steps, -1 for none."""
    try:
        first = whole(label, "label")
    except InputError as error:
        return Labels(missing=str(error))
    if not -1 <= first < count:
        return Labels(missing=f"label is {first}; it is the index of the first wrong of {count} steps, or -1")
    return Labels(tuple(first == -1 or index < first for index in range(count)))


def truths(labels: Any, count: int) -> Labels:
    """A truth value for each of `count` steps."""
    if not isinstance(labels, (list, tuple)) or len(labels) != count:
        what = f"{len(labels)} items" if isinstance(labels, (list, tuple)) else type(labels).__name__
        return Labels(missing=f"labels are {what}, and there are {count} steps")
    try:
        right = [_sign(label, f"label {index}") for index, label in enumerate(labels)]
    except InputError as error:
        return Labels(missing=str(error))
    return Labels(cumulative(right), "a step has no label" if None in right else "")


def _sign(label: Any, name: str) -> bool | None:
    """A truth value; -1 is wrong too, as ratings have it."""
    if isinstance(label, (int, float)) and not isinstance(label, bool) and label == -1:
        return False
    return truth(label, name)


def cumulative(right: Sequence[bool | None]) -> tuple[bool | None, ...]:
    """Whether each step and all before it are right; None after a step without a label, unless a wrong one is first."""
    result: list[bool | None] = []
    so_far: bool | None = True
    for value in right:
        so_far = False if so_far is False else None if so_far is None or value is None else value
        result.append(so_far)
    return tuple(result)
