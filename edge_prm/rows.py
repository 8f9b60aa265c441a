"""JSONL rows of the command line: which fields mean what, and errors that name the line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge_prm.errors import InputError

PROMPT_FIELDS = ("problem", "prompt")
COMPLETION_FIELDS = ("completion", "response", "output", "solution")


@dataclass(frozen=True)
class Row:
    """One line of input: its number, its id (its own or the line number), and what to score."""

    line: int
    id: Any
    prompt: str
    steps: str | Sequence[str]


@dataclass(frozen=True)
class CandidatesRow:
    line: int
    id: Any
    prompt: str
    candidates: tuple[str | Sequence[str], ...]


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be scored, and why."""

    line: int
    reason: str


def read_rows(lines: Iterable[bytes], kind: type[Row] | type[CandidatesRow]) -> Iterator[Row | CandidatesRow | BadRow]:
    """Yield a row for each line that is not blank; a bad line is yielded as BadRow, never skipped in silence."""
    parse = _candidates_row if kind is CandidatesRow else _row
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield parse(number, _object(text))
        except UnicodeDecodeError as error:
            yield BadRow(number, f"not UTF-8 text (byte {error.start})")
        except InputError as error:
            yield BadRow(number, str(error))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise InputError("not valid JSON (nested too deep)") from None
    if not isinstance(value, dict):
        raise InputError(f"holds {type(value).__name__}, not an object")
    return value


def _row(line: int, fields: dict[str, Any]) -> Row:
    if "steps" in fields:
        if not isinstance(fields["steps"], list):
            raise InputError(f"steps are {type(fields['steps']).__name__}, not a list")
        steps: str | Sequence[str] = fields["steps"]
    else:
        steps = _string(fields, COMPLETION_FIELDS, "steps (a list)")
    return Row(line, fields.get("id", line), _prompt(fields), steps)


def _candidates_row(line: int, fields: dict[str, Any]) -> CandidatesRow:
    candidates = fields.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise InputError("candidates are missing, empty or not a list")
    return CandidatesRow(
        line, fields.get("id", line), _prompt(fields), tuple(_candidate(c, i) for i, c in enumerate(candidates))
    )


def _candidate(value: Any, index: int) -> str | Sequence[str]:
    if isinstance(value, dict):
        value = value.get("text", value.get("steps"))
    if not isinstance(value, (str, list)):
        raise InputError(f"candidate {index} is neither a string nor an object with text")
    return value


def _prompt(fields: dict[str, Any]) -> str:
    return _string(fields, PROMPT_FIELDS)


def _string(fields: dict[str, Any], names: Sequence[str], *others: str) -> str:
    for name in names:
        if name in fields:
            if not isinstance(fields[name], str):
                raise InputError(f"{name} is {type(fields[name]).__name__}, not a string")
            return str(fields[name])
    raise InputError(f"no {' or '.join((*others, *names))}; its fields are {', '.join(fields) or 'none'}")
