"""Rows of tables: CSV and Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from edge_prm.errors import InputError, MissingExtraError
from edge_prm.records.file_row import LONGEST_VALUE, FileRow, Row
from edge_prm.records.json_list import SURROGATES
from edge_prm.records.names import KNOWN_COLUMNS
from edge_prm.records.record import BadRow


def csv_delimiter(text: bytes, columns: Collection[str]) -> str:
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


def csv_rows(file: BinaryIO, delimiter: str) -> Iterator[FileRow]:
    """Rows of a CSV file with a header; an empty cell is a field that is not there."""
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
    if any(map(SURROGATES.search, cells)):
        return BadRow(place, number, "not UTF-8 text")
    return Row(place, number, {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}, typed=False)


def parquet_rows(file: BinaryIO, name: str) -> Iterator[FileRow]:
    """Rows of a Parquet file; InputError when it is empty or damaged, MissingExtraError without pyarrow."""
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
    return _rows_of(table)


def _rows_of(table: Any) -> Iterator[FileRow]:
    number = 0
    try:
        for batch in table.iter_batches(batch_size=256):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", number, values)
    except Exception as error:  # as above, in the middle of a file
        yield BadRow(f"after row {number}", number + 1, f"the file cannot be read on ({error})")
