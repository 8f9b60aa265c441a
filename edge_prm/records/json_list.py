"""A JSON list of rows, read piece by piece, so that the file is never held complete."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from edge_prm.records.file_row import LONGEST_VALUE, FileRow
from edge_prm.records.json_lines import object_row
from edge_prm.records.record import BadRow

SURROGATES = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as Python's `surrogateescape` reads them."""
_SPACE = re.compile(r"[\s\ufeff]*")
_SPACE_OR_COMMA = re.compile(r"[\s,\ufeff]*")


def json_list(pieces: Iterator[str]) -> Iterator[FileRow]:
    """The items of a list, read piece by piece, so that the file is never held complete."""
    decoder = json.JSONDecoder()
    text, at, number = "", 0, 0
    done = False
    while not done:
        piece = next(pieces, None)
        if piece is None:
            done = True
        else:
            text, at = text[at:] + piece, 0
        if number == 0 and text and at == 0:
            start = _SPACE.match(text)
            at = start.end() if start else 0
            if text[at : at + 1] == "[":
                at += 1
        while True:
            space = _SPACE_OR_COMMA.match(text, at)
            at = space.end() if space else at
            if at >= len(text):
                break
            if text[at] == "]":
                if rest := (text[at + 1 :] + "".join(pieces)).strip():
                    yield BadRow(f"after row {number}", number + 1, f"text follows the list: {rest[:40]!r}")
                return
            try:
                value, end = decoder.raw_decode(text, at)
            except RecursionError:
                yield BadRow(f"row {number + 1}", number + 1, "not valid JSON (nested too deep)")
                return
            except ValueError as error:
                if not done and len(text) - at < LONGEST_VALUE:
                    break  # the rest of the item may follow
                yield BadRow(f"row {number + 1}", number + 1, f"not valid JSON ({error}); the list cannot be read on")
                return
            if end == len(text) and not done:
                break  # a number may go on
            number += 1
            damaged = SURROGATES.search(text, at, end)  # JSON's own escapes are plain characters here
            at = end
            place = f"row {number}"
            yield BadRow(place, number, "not UTF-8 text") if damaged else object_row(place, number, value)
    yield BadRow(f"after row {number}", number + 1, "the list has no end: the file is cut off")


def decoded(file: BinaryIO) -> Iterator[str]:
    """The text of a file in pieces; bytes that are not UTF-8 become lone surrogates, and are named row by row."""
    reader = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")
    return iter(lambda: reader.read(1 << 20), "")
