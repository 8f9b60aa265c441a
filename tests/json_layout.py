"""Keys and types of a JSON document as data. `*`: any key; `...`: more keys; a tuple lists alternatives; a list holds any
number of items."""

from __future__ import annotations

from typing import Any

NUMBER = (float, int)
OR_NULL = type(None)


def problems(value: Any, expected: Any, place: str = "$") -> list[str]:
    """Where a JSON value is not what is expected."""
    if isinstance(expected, tuple):
        found = [problems(value, alternative, place) for alternative in expected]
        return [] if [] in found else found[0]
    if isinstance(expected, list):
        if not isinstance(value, list):
            return [f"{place} is {type(value).__name__}"]
        return [text for i, item in enumerate(value) for text in problems(item, expected[0], f"{place}[{i}]")]
    if not isinstance(expected, dict):
        right = expected is object or type(value) is expected
        return [] if right else [f"{place} is {type(value).__name__}, not {expected.__name__}"]
    if not isinstance(value, dict):
        return [f"{place} is {type(value).__name__}"]
    if "*" in expected:
        return [text for key in value for text in problems(value[key], expected["*"], f"{place}.{key}")]
    named = expected.keys() - {"..."}
    wrong = [f"{place}.{key} is missing" for key in named - value.keys()]
    wrong += [f"{place}.{key} is new" for key in value.keys() - named if "..." not in expected]
    both = named & value.keys()
    return wrong + [text for key in both for text in problems(value[key], expected[key], f"{place}.{key}")]
