"""Rows for the tests of the reader, and what it reads in them."""

from __future__ import annotations

import io
import json
from typing import Any

from edge_prm.records import BadRow, Candidate, Fields, Record, read_records

ANSWER = "3 * 4 = 12\n\n2 + 12 = 14"
STEPS = ["3 * 4 = 12", "2 + 12 = 14"]
THINK = "<think>\n3 * 4 = 12\n</think>\n\n2 + 12 = 14"
Q = "What is 2 + 3 * 4?"


def read(*rows: Any, fields: Fields | None = None) -> list[Record | BadRow]:
    lines = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    return list(read_records(io.BytesIO(lines), fields))


def record(row: Any, **fields: str) -> Record:
    (found,) = read(row, fields=Fields(**fields))
    assert isinstance(found, Record), found.reason
    return found


def reason(row: Any, **fields: str) -> str:
    (found,) = read(row, fields=Fields(**fields))
    assert isinstance(found, BadRow), found
    return found.reason


def texts(candidate: Candidate, prompt: str = Q) -> list[str]:
    return [step.text for step in candidate.trajectory(prompt, "auto", None).steps]


def kinds(candidate: Candidate) -> str:
    return "".join(step.kind[0] for step in candidate.trajectory(Q, "auto", None).steps)


def user(content: Any = Q) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = ANSWER, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}
