"""Bytes of a file -> rows: JSON Lines, a JSON list, JSON over several lines, gzip of these, CSV, Parquet.

The kind of file is found by its first bytes. A line that cannot be read is a BadRow, and the lines after it are read.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, NamedTuple

from edge_prm.errors import InputError, MissingExtraError
from edge_prm.records.names import KNOWN_COLUMNS
from edge_prm.records.record import BadRow

PEEK = 1 << 16
LONGEST_VALUE = 64 << 20
"""Bytes that one JSON value over several lines may have, before it counts as damaged."""
_BOM = b"\xef\xbb\xbf"
_OTHER_FORMATS = (
    (b"\xff\xfe", "UTF-16 text"), (b"\xfe\xff", "UTF-16 text"), (b"PK\x03\x04", "a zip file (or a spreadsheet)"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"), (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "HDF5"), (b"SQLite format 3", "an SQLite database"), (b"GGUF", "a GGUF model"), (b"%PDF", "a PDF"),
    (b"Obj\x01", "Avro"), (b"\x93NUMPY", "a numpy array"), (b"\x80\x04", "a pickle"), (b"\x80\x05", "a pickle"),
)  # fmt: skip
_READ = "JSON Lines, a JSON list, CSV (each as UTF-8, gzip too) and Parquet are read"


class Row(NamedTuple):
    """A row: its place for messages, its number from 1, its fields, and whether values have types (CSV has none)."""

    place: str
    number: int
    values: dict[str, Any]
    typed: bool = True


FileRow = Row | BadRow


def file_rows(file: BinaryIO, name: str, columns: Collection[str] = ()) -> Iterator[FileRow]:
    """Rows of an open binary file that can be peeked into; InputError for a file of a kind that is not read.

    `columns` are names of fields that the user gives: a header with one of these, or with a known name, is one of CSV.
    """
    head = _peek(file)
    if head[:2] == b"\x1f\x8b":
        file = io.BufferedReader(gzip.GzipFile(fileobj=file), PEEK)
        head = _peek_gzip(file, name)
    if head[:4] == b"PAR1":
        return _parquet(file, name)
    _refuse_others(head, name)
    text = head.removeprefix(_BOM).lstrip(_BOM + b" \t\r\n\v\f")
    if not text:
        raise InputError(f"{name} holds no rows")
    if text[:1] == b"[" and not _line_of_list(text):
        return _guarded(_json_list(_decoded(file)), name)
    if text[:1] not in b"{[" and (dialect := _csv_delimiter(text, columns)):
        return _guarded(_csv(file, dialect), name)
    return _guarded(_json_lines(_lines(file)), name)


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


# JSON Lines


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line; lines end at LF, CR LF, or a lone CR, which JSON text cannot hold."""
    number = 0
    for chunk in file:
        parts = chunk.removesuffix(b"\n").removesuffix(b"\r").split(b"\r") if b"\r" in chunk else (chunk,)
        for part in parts:
            number += 1
            yield number, part


def _json_lines(lines: Iterator[tuple[int, bytes]]) -> Iterator[FileRow]:
    first = True
    for number, raw in lines:
        line = raw.removeprefix(_BOM).strip()
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
        return _row(place, number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return BadRow(place, number, f"not UTF-8 text (byte {error.start})")
    except RecursionError:
        return BadRow(place, number, "not valid JSON (nested too deep)")
    except ValueError as error:
        return BadRow(place, number, f"not valid JSON ({error})")


def _row(place: str, number: int, value: Any) -> FileRow:
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
        kept.append((at, raw.removeprefix(_BOM)))
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
            if line := raw.removeprefix(_BOM).strip():
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


# a JSON list


def _decoded(file: BinaryIO) -> Iterator[str]:
    """The text of a file in pieces; bytes that are not UTF-8 become lone surrogates, and are named row by row."""
    reader = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")
    return iter(lambda: reader.read(1 << 20), "")


_SURROGATES = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as Python's `surrogateescape` reads them."""
_SPACE = re.compile(r"[\s\ufeff]*")
_SPACE_OR_COMMA = re.compile(r"[\s,\ufeff]*")


def _json_list(pieces: Iterator[str]) -> Iterator[FileRow]:
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
            damaged = _SURROGATES.search(text, at, end)  # JSON's own escapes are plain characters here
            at = end
            place = f"row {number}"
            yield BadRow(place, number, "not UTF-8 text") if damaged else _row(place, number, value)
    yield BadRow(f"after row {number}", number + 1, "the list has no end: the file is cut off")


# CSV


def _csv_delimiter(text: bytes, columns: Collection[str]) -> str:
    """The delimiter of a CSV file with a header that names a known column; "" when it is none."""
    header = re.split(rb"[\r\n]", text, maxsplit=1)[0].decode("utf-8", "replace")
    for delimiter in (",", "\t", ";"):
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            continue
        if len(names) > 1 and any(name.strip().lower() in KNOWN_COLUMNS or name.strip() in columns for name in names):
            return delimiter
    return ""


def _csv(file: BinaryIO, delimiter: str) -> Iterator[FileRow]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_VALUE))
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader, [])]
    number = 0
    while True:
        line = reader.line_num + 1
        number += 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield BadRow(f"line {line}", number, f"not valid CSV ({error})")
            continue
        if cells is None:
            return
        if not cells:  # a blank line
            number -= 1
            continue
        yield _csv_row(f"line {line}", number, names, cells)


def _csv_row(place: str, number: int, names: list[str], cells: list[str]) -> FileRow:
    if len(cells) != len(names):
        return BadRow(place, number, f"{len(cells)} cells, and the header has {len(names)} columns")
    if any(map(_SURROGATES.search, cells)):
        return BadRow(place, number, "not UTF-8 text")
    return Row(place, number, {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}, typed=False)


# Parquet


def _parquet(file: BinaryIO, name: str) -> Iterator[FileRow]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("data", ["pyarrow"]) from None
    source = file if file.seekable() and not isinstance(file, gzip.GzipFile) else io.BytesIO(file.read())
    try:
        table = pyarrow.parquet.ParquetFile(source)
        if not table.metadata.num_rows:
            raise InputError(f"{name} holds no rows")
    except InputError:
        raise
    except Exception as error:  # pyarrow's errors have several bases
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} looks like Parquet and cannot be read ({reason}); get it again") from None
    return _parquet_rows(table)


def _parquet_rows(table: Any) -> Iterator[FileRow]:
    number = 0
    try:
        for batch in table.iter_batches(batch_size=256):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", number, values)
    except Exception as error:  # as above, in the middle of a file
        yield BadRow(f"after row {number}", number + 1, f"the file cannot be read on ({error})")
