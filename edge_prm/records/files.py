"""Bytes of a file -> rows: JSON Lines, a JSON list, JSON over several lines, gzip of these, CSV, Parquet.

The kind of file is found by its first bytes. A line that cannot be read is a BadRow, and the lines after it are read.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

from edge_prm.errors import InputError
from edge_prm.records.file_row import BOM, FileRow
from edge_prm.records.json_lines import json_lines, numbered_lines
from edge_prm.records.json_list import decoded, json_list
from edge_prm.records.record import BadRow
from edge_prm.records.tables import csv_delimiter, csv_rows, parquet_rows

PEEK = 1 << 16
_OTHER_FORMATS = (
    (b"\xff\xfe", "UTF-16 text"), (b"\xfe\xff", "UTF-16 text"), (b"PK\x03\x04", "a zip file (or a spreadsheet)"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"), (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "HDF5"), (b"SQLite format 3", "an SQLite database"), (b"GGUF", "a GGUF model"), (b"%PDF", "a PDF"),
    (b"Obj\x01", "Avro"), (b"\x93NUMPY", "a numpy array"), (b"\x80\x04", "a pickle"), (b"\x80\x05", "a pickle"),
)  # fmt: skip
_READ = "JSON Lines, a JSON list, CSV (each as UTF-8, gzip too) and Parquet are read"


def file_rows(file: BinaryIO, name: str, columns: Collection[str] = ()) -> Iterator[FileRow]:
    """Rows of an open binary file that can be peeked into; InputError for a file of a kind that is not read.

    `columns` are names of fields that the user gives: a header with one of these, or with a known name, is one of CSV.
    """
    head = _peek(file)
    if head[:2] == b"\x1f\x8b":
        file = io.BufferedReader(gzip.GzipFile(fileobj=file), PEEK)
        head = _peek_gzip(file, name)
    if head[:4] == b"PAR1":
        return parquet_rows(file, name)
    _refuse_others(head, name)
    text = head.removeprefix(BOM).lstrip(BOM + b" \t\r\n\v\f")
    if not text:
        raise InputError(f"{name} holds no rows")
    if text[:1] == b"[" and not _line_of_list(text):
        return _guarded(json_list(decoded(file)), name)
    if text[:1] not in b"{[" and (dialect := csv_delimiter(text, columns)):
        return _guarded(csv_rows(file, dialect), name)
    return _guarded(json_lines(numbered_lines(file)), name)


def _peek(file: BinaryIO) -> bytes:
    try:
        return bytes(file.peek(PEEK)[:PEEK])  # type: ignore[attr-defined]
    except OSError as error:
        raise InputError(f"the rows cannot be read ({error.strerror or error})") from None


def _peek_gzip(file: BinaryIO, name: str) -> bytes:
    try:
        return bytes(file.peek(PEEK)[:PEEK])  # type: ignore[attr-defined]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} is a damaged gzip file ({error}); get it again") from None


def _refuse_others(head: bytes, name: str) -> None:
    for magic, what in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{name} is {what}; {_READ}")
    if b"\0" in head[:4]:  # ASCII characters of UTF-16 or UTF-32 without a byte order mark
        raise InputError(f"{name} looks like UTF-16 text; {_READ}")


def _line_of_list(text: bytes) -> bool:
    """Whether a text that begins with [ is a line with a complete list, and more lines follow: rows that are lists."""
    line, found, rest = text.partition(b"\n")
    if not found or not rest.strip():
        return False
    try:
        return isinstance(json.loads(line), list) and rest.lstrip()[:1] in b"{["
    except (ValueError, RecursionError):
        return False


def _guarded(rows: Iterator[FileRow], name: str) -> Iterator[FileRow]:
    """Damage of the file itself, which ends it, becomes a last BadRow."""
    number, count = 0, 0
    try:
        for row in rows:
            number, count = row.number, count + 1
            yield row
    except (OSError, EOFError, zlib.error) as error:
        yield BadRow(f"after line {number}", number + 1, f"the file cannot be read on ({error})")
        return
    if not count:
        raise InputError(f"{name} holds no rows")
