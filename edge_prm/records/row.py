"""A row's fields, with the checks that every format needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_prm.errors import InputError
from edge_prm.records.names import IDS, LIST_COLUMNS, PROMPTS, VALUE_COLUMNS
from edge_prm.records.record import Fields
from edge_prm.split import shown


class RowFields(Mapping[str, Any]):
    """Fields of a row that are not null: a null field counts as missing. `raw` has all of them."""

    def __init__(self, raw: Mapping[str, Any], given: Fields, typed: bool = True) -> None:
        self.raw = raw
        self.given = given
        values = raw if typed else {name: _cell(name, value) for name, value in raw.items()}
        self._values = {name: value for name, value in values.items() if value is not None}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def at(self, path: str) -> Any:
        """The value at a path such as `doc.answer` or `messages.-1.content`; InputError where it leads nowhere."""
        if path in self._values:
            return self._values[path]
        value: Any = self._values
        for part in path.split("."):
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InputError(f"no field {path!r}; its fields are {names(self.raw)}") from None
        if value is None:
            raise InputError(f"field {path!r} is null")
        return value

    def prompt(self, *others: str) -> str:
        """The problem: the field that the user names, or the first known one."""
        if self.given.prompt:
            return text(self.at(self.given.prompt), self.given.prompt)
        for name in (*PROMPTS, *others):
            if name in self._values:
                return _prompt_text(self._values[name], name)
        known = " or ".join(PROMPTS[:3])
        raise InputError(f"no {known}; its fields are {names(self.raw)} (--prompt-field names another)")

    def id(self, number: int) -> Any:
        """The row's id, or its number where it has none that JSON can hold."""
        if self.given.id:
            return self.at(self.given.id)
        found = next((self._values[name] for name in IDS if name in self._values), number)
        return number if isinstance(found, float) and not math.isfinite(found) else found


def text(value: Any, name: str) -> str:
    """A string; InputError with the field's name for anything else."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {type(value).__name__}, not a string: {shown(value)}")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """A list of strings; InputError with the field's name for anything else."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name} are {type(value).__name__}, not a list (--completion-field names a text to be split)")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InputError(f"{name}: item {index} is {type(item).__name__}, not a string: {shown(item)}")
    return tuple(value)


def names(row: Mapping[str, Any]) -> str:
    """The names of a row's fields, for a message."""
    found = [str(name)[:40] for name in row]
    return ", ".join(found[:20]) + (", ..." if len(found) > 20 else "") or "none"


def message_text(message: Any, place: str) -> tuple[str, str]:
    """(reasoning, content) of a chat message; content may be a string or a list of text parts.

    InputError for anything that is not text: images, tool calls.
    """
    from edge_prm.records.names import REASONING

    if not isinstance(message, Mapping):
        raise InputError(f"{place} is {type(message).__name__}, not a message")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    reasoning = next((message[name] for name in REASONING if message.get(name)), "")
    if content is None and message.get("tool_calls"):
        raise InputError(f"{place} is a call of a tool and has no text")
    if content is None and not reasoning:
        raise InputError(f"{place} has no content; its fields are {names(message)}")
    return text(reasoning, f"reasoning of {place}"), text(content or "", f"content of {place}")


def role_of(message: Any) -> str:
    """The role of a message as data sets write it: `role`, or ShareGPT's `from`; "" where there is none."""
    role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    return role.lower() if isinstance(role, str) else ""


def truth(value: Any, name: str) -> bool | None:
    """A truth value, or 1 or 0, also as a float of pandas; None for null. InputError for all else, strings included."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    raise InputError(f"{name} is {shown(value)}, not true or false")


def whole(value: Any, name: str) -> int:
    """A whole number, also as a float of pandas; InputError for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is {shown(value)}, not a whole number")
    return value


def _prompt_text(value: Any, name: str) -> str:
    """A prompt as text; a conversation of one user's turn is its content."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        turns = [item for item in value if role_of(item) not in ("system", "developer")]
        if len(turns) == 1:
            return message_text(turns[0], name)[1]
        raise InputError(f"{name} is a conversation of {len(turns)} turns; --prompt-field {name}.0.content names one")
    return text(value, name)


def _part(part: Any, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", "output_text") and "text" in part:
        return text(part["text"], f"a part of {place}")
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(f"{place} has a part that is no text ({shown(kind)})")


def _cell(name: str, value: str) -> Any:
    """A cell of a CSV file, which knows strings only, as the value that its column holds."""
    if name in VALUE_COLUMNS and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if name in VALUE_COLUMNS or (name in LIST_COLUMNS and value.lstrip()[:1] in ("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            if name in LIST_COLUMNS:
                raise InputError(f"{name} is a cell that is not valid JSON: {shown(value)}") from None
    return value


def sequence(value: Any, name: str) -> Sequence[Any]:
    """A list that is not empty; InputError for anything else."""
    if not isinstance(value, (list, tuple)) or not value:
        what = "empty" if isinstance(value, (list, tuple)) else f"{type(value).__name__}, not a list"
        raise InputError(f"{name} are {what}")
    return value
