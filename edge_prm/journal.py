"""Append-only JSON Lines that a killed run resumes: a header line that says what was asked, then a line for each row.

    with Journal(path, JournalHeader("edge-prm-reference", 2, {"data_sha256": ...})) as journal:
        done = {row["id"] for row in journal.rows()}
        journal.write([{"id": "a", "rewards": [0.5]}])

Only lines that end count. A process can be killed at any moment: at most one line is then torn, and the next run cuts
it. One process writes at a time, by a lock that the system drops however the process ends.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from edge_prm.errors import InputError, OutputError
from edge_prm.output import lock


@dataclass(frozen=True)
class JournalHeader:
    """The first line of a journal: its format, the version of that format, and what the run was asked to do.

    `asked` holds JSON values, by name: hashes of the data and the model, options that decide a row. Two runs with equal
    `asked` write rows that can stand in one file. `noun` and `remedy` are words for messages: what the file is called,
    and how a user gets one.
    """

    format: str
    version: int
    asked: Mapping[str, Any] = field(default_factory=dict)
    noun: str = "journal"
    remedy: str = "choose another file"

    def line(self) -> str:
        """The header as a line of the file; ValueError for a number that is not finite."""
        return json.dumps({"format": self.format, "format_version": self.version, **self.asked}, allow_nan=False) + "\n"

    @property
    def start(self) -> bytes:
        """The bytes that every header of this format begins with."""
        return json.dumps({"format": self.format})[:-1].encode()


@dataclass(frozen=True)
class JournalFile:
    """A journal as it is read: `header` holds the values of its first line; `rows` yields one object for each line."""

    path: Path
    header: Mapping[str, Any]
    _expected: JournalHeader
    _end: int | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, one at a time, in constant memory; InputError for a line that is not a JSON object."""
        for number, line in _lines(self.path, self._end):
            if number > 1:
                yield _parsed(self.path, number, line, self._expected)


def read_journal(path: str | Path, expected: JournalHeader) -> JournalFile:
    """Open a journal to read it, whatever it was asked for.

    InputError when the file cannot be read, is no journal of the format that `expected` names, or has another version.
    """
    path = Path(path)
    first = next(_lines(path, None), None) if _begins_like(path, expected) else None
    header = {} if first is None else _parsed(path, 1, first[1], expected)
    if header.get("format") != expected.format:
        raise InputError(f"{path} is not a {expected.noun}; {expected.remedy}")
    if header.get("format_version") != expected.version:
        raise InputError(
            f"{path} has format version {header.get('format_version')!r} and this edge-prm reads {expected.version}; "
            "write it again, or update edge-prm"
        )
    return JournalFile(path, header, expected)


def check_journal(path: Path, header: JournalHeader) -> JournalFile | None:
    """The journal that a run with this header would resume, None where it would begin one; nothing is changed.

    InputError when the file was begun by a run that was asked for something else, with the first value that differs,
    or when it is another kind of file; OutputError when it cannot be written there.
    """
    _check_place(path)
    if not path.exists():
        return None
    if not _begins_like(path, header):
        raise InputError(f"{path} is not a {header.noun}; choose another output")
    if not any(_lines(path, None)):  # empty, or a header that was torn
        return None
    journal = read_journal(path, header)
    _check_same(journal, header)
    return journal


class Journal:
    """Writes a journal; a file that is there already is resumed after its last complete line.

    `sync_seconds`: rows that a power failure may lose, in seconds of writing; 0 puts each write on the disk before it
    returns. A killed process loses nothing that `write` returned from, in either case. May be shared by threads.

    Raises InputError when the file was begun by a run that was asked for something else, or is being written by another
    process; OutputError when the system refuses.
    """

    def __init__(self, path: Path, header: JournalHeader, sync_seconds: float = 0.0) -> None:
        self._path = path
        self._sync_seconds = sync_seconds
        self._synced_at = time.monotonic()
        self._turn = threading.Lock()
        check_journal(path, header)  # before the file is opened, which creates it
        try:
            self._file = _open_locked(path)
            resumed = check_journal(path, header)  # again: another process may have written until now
            self._end = _end_of_lines(path) if resumed else 0
            self._resumed = None if resumed is None else JournalFile(path, resumed.header, header, self._end)
            os.ftruncate(self._file.fileno(), self._end)
            if not resumed:
                self._append(header.line())
        except OSError as error:
            self._close_file()
            if isinstance(error, OutputError):
                raise
            raise self._refused(error) from error
        except BaseException:
            self._close_file()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the file held when it was opened, one at a time."""
        return iter(()) if self._resumed is None else self._resumed.rows()

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append a line for each row, all of them in one system call.

        ValueError for a number that is not finite, TypeError for what is no JSON; nothing is written then. OutputError
        when the system refuses: the file then holds what it held before.
        """
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        try:
            with self._turn:
                self._append(text)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Put everything on the disk, close the file, and let other processes write it."""
        with self._turn:
            if not self._file.closed:
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    raise self._refused(error) from error
                finally:
                    self._file.close()

    def _append(self, text: str) -> None:
        data = memoryview(text.encode())
        if os.fstat(self._file.fileno()).st_size != self._end:  # an interrupted or refused write was torn
            os.ftruncate(self._file.fileno(), self._end)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError:
            os.ftruncate(self._file.fileno(), self._end)
            raise
        self._end += len(data)
        if time.monotonic() - self._synced_at >= self._sync_seconds:
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()

    def _close_file(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path} cannot be written: {error.strerror or error}; what it holds is kept, run the same again"
        )


def _open_locked(path: Path) -> BinaryIO:
    """Open for appending, unbuffered, with the lock of the file; InputError when another process has it.

    Where the system has no locks, the user takes care that one run writes at a time.
    """
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by Journal.close
    if lock(file.fileno()) is False:
        file.close()
        raise InputError(f"{path} is being written by another process; wait for it, or choose another output")
    return file


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a folder; give the name of a file")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {parent}; make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission")


def _begins_like(path: Path, header: JournalHeader) -> bool:
    """Whether a file begins like a journal of this format, or ends before that can be seen."""
    try:
        with open(path, "rb") as file:
            return header.start.startswith(file.read(len(header.start)))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def _lines(path: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that ends, up to byte `end` of the file."""
    at = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                at += len(line)
                if not line.endswith(b"\n") or (end is not None and at > end):
                    return
                yield number, line
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def _end_of_lines(path: Path) -> int:
    """The size in bytes of all lines that end."""
    return sum(len(line) for _, line in _lines(path, None))


def _parsed(path: Path, number: int, line: bytes, expected: JournalHeader) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # of bytes that are not UTF-8 too
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number} is not a line of a {expected.noun}; {expected.remedy}")
    return value


def _check_same(journal: JournalFile, header: JournalHeader) -> None:
    begun, asked = dict(journal.header), json.loads(header.line())
    for name in dict.fromkeys((*asked, *begun)):
        if begun.get(name) != asked.get(name):
            raise InputError(
                f"{journal.path} was begun with {name} {begun.get(name)!r} and this run has {asked.get(name)!r}; "
                "finish it as it was begun, or choose another output"
            )
