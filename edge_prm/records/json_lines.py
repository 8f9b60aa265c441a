"""JSON Lines, and objects over several lines one after the other, as pretty-printed JSON has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from edge_prm.records.file_row import BOM, LONGEST_VALUE, FileRow, Row
from edge_prm.records.record import BadRow


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line; lines end at LF, CR LF, or a lone CR, which JSON text cannot hold."""
    number = 0
    for chunk in file:
        parts = chunk.removesuffix(b"\n").removesuffix(b"\r").split(b"\r") if b"\r" in chunk else (chunk,)
        for part in parts:
            number += 1
            yield number, part


def json_lines(lines: Iterator[tuple[int, bytes]]) -> Iterator[FileRow]:
    """A row for each line that is not blank; a file whose first line is no object may hold objects over several."""
    first = True
    for number, raw in lines:
        line = raw.removeprefix(BOM).strip()
        if not line:
            continue
        place = f"line {number}"
        row = _parsed(place, number, line)
        if first and isinstance(row, BadRow) and line[:1] == b"{":
            yield from _joined(number, line, lines)
            return
        first = False
        yield row


def _parsed(place: str, number: int, line: bytes) -> FileRow:
    try:
        return object_row(place, number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return BadRow(place, number, f"not UTF-8 text (byte {error.start})")
    except RecursionError:
        return BadRow(place, number, "not valid JSON (nested too deep)")
    except ValueError as error:
        return BadRow(place, number, f"not valid JSON ({error})")


def object_row(place: str, number: int, value: Any) -> FileRow:
    """A JSON value as a row; a BadRow unless it is an object."""
    if isinstance(value, dict):
        return Row(place, number, value)
    return BadRow(place, number, f"holds {type(value).__name__}, not an object")


def _joined(number: int, first: bytes, lines: Iterator[tuple[int, bytes]]) -> Iterator[FileRow]:
    """Rows of a file whose objects go over several lines, as pretty-printed JSON has them; else the lines one by one.

    It is one where the first line alone is not an object and the first lines together are.
    """
    kept = [(number, first)]
    text = first
    for at, raw in lines:
        kept.append((at, raw.removeprefix(BOM)))
        text += b"\n" + kept[-1][1]
        if raw.strip()[-1:] in (b"}", b"},") and _is_object(text):
            return _objects(iter(kept), lines)
        if len(text) > LONGEST_VALUE or (raw[:1] == b"{" and _is_object(raw)):
            break
    return _again(kept, lines)


def _again(kept: list[tuple[int, bytes]], lines: Iterator[tuple[int, bytes]]) -> Iterator[FileRow]:
    """The lines that were looked at, each on its own, and then the others."""
    for source in (iter(kept), lines):
        for number, raw in source:
            if line := raw.removeprefix(BOM).strip():
                yield _parsed(f"line {number}", number, line)


def _objects(kept: Iterator[tuple[int, bytes]], lines: Iterator[tuple[int, bytes]]) -> Iterator[FileRow]:
    """Objects over several lines, one after the other; a damaged one ends where the next begins at a line's start."""
    start, text = 0, b""
    for source in (kept, lines):
        for number, raw in source:
            if text and raw[:1] == b"{":
                yield _parsed(f"line {start}", start, text)
                text = b""
            if not raw.strip():
                continue
            start = start if text else number
            text = text + b"\n" + raw if text else raw
            if raw.strip()[-1:] == b"}" and _is_object(text):
                yield _parsed(f"line {start}", start, text)
                text = b""
    if text:
        yield _parsed(f"line {start}", start, text)


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
