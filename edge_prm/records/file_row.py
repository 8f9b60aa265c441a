"""A row as its file holds it, before its format is known."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from edge_prm.records.record import BadRow

LONGEST_VALUE = 64 << 20
"""Bytes that one JSON value over several lines, or a cell of CSV, may have before it counts as damaged."""
BOM = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """A row: its place for messages, its number from 1, its fields, and whether values have types (CSV has none)."""

    place: str
    number: int
    values: dict[str, Any]
    typed: bool = True


FileRow: TypeAlias = Row | BadRow
