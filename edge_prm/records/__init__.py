"""Rows of any usual format -> records: the reader of every command.

    for record in read_records("traces.jsonl"):
        ...

`files` turns bytes into rows (JSON Lines, a JSON list, gzip, CSV, Parquet), `formats` turns a row into a Record by the
keys that it has. A row that cannot be read is a BadRow with its reason, and costs only itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from edge_prm.errors import InputError
from edge_prm.records.file_row import FileRow
from edge_prm.records.files import file_rows
from edge_prm.records.formats import read_row
from edge_prm.records.record import BadRow, Candidate, Fields, Record

__all__ = ["BadRow", "Candidate", "Fields", "Record", "read_records"]


def read_records(
    source: str | Path | BinaryIO, fields: Fields | None = None, *, name: str | None = None
) -> Iterator[Record | BadRow]:
    """Yield a Record or a BadRow for each row of a file, one at a time, in constant memory for JSON Lines and CSV.

    `source` is a path or an open binary file; `fields` names fields in place of those that are detected; `name` is what
    messages call the file. Raises InputError, before the first row, for a file that is missing, empty, or of a format
    that is not read; MissingExtraError for Parquet without pyarrow.
    """
    fields = fields or Fields()
    if isinstance(source, (str, Path)):
        return _of_path(Path(source), fields, name or str(source))
    buffered: Any = source if hasattr(source, "peek") else io.BufferedReader(source)
    return _records(file_rows(buffered, name or str(getattr(source, "name", "input")), fields.names), fields)


def _of_path(path: Path, fields: Fields, place: str) -> Iterator[Record | BadRow]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed when the rows are read
    except OSError as error:
        raise InputError(f"{place} cannot be read ({error.strerror}); give a file of rows") from None
    try:
        rows = file_rows(file, place, fields.names)
    except BaseException:
        file.close()
        raise
    return _closing(file, _records(rows, fields))


def _closing(file: BinaryIO, records: Iterator[Record | BadRow]) -> Iterator[Record | BadRow]:
    with file:
        yield from records


def _records(rows: Iterator[FileRow], fields: Fields) -> Iterator[Record | BadRow]:
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        place, number, values, typed = row
        try:
            yield read_row(place, number, values, fields, typed)
        except InputError as error:
            yield BadRow(place, number, str(error), values.get("id"))
