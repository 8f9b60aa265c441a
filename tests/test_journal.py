"""A journal survives a kill at any moment, is resumed by the run that began it, and by no other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge_prm.errors import InputError, OutputError
from edge_prm.journal import Journal, JournalHeader, check_journal, read_journal

HEADER = JournalHeader("test-journal", 1, {"data": "abc", "split": "auto"}, "test file", "write one with a test")
ROWS = [{"id": str(index), "text": "é" * index} for index in range(20)]

WRITER = """
import sys
from pathlib import Path
from edge_prm.journal import Journal, JournalHeader
with Journal(Path(sys.argv[1]), JournalHeader("test-journal", 1, {"data": "abc"}), sync_seconds=60) as journal:
    for number in range(len(list(journal.rows())), 100_000):
        journal.write([{"number": number, "padding": "x" * (number % 977)}])
        print(number, flush=True)
"""


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> bytes:
    with Journal(path, HEADER) as journal:
        journal.write(rows)
    return path.read_bytes()


def test_a_journal_is_a_header_and_a_line_for_each_row(tmp_path: Path) -> None:
    lines = written(tmp_path / "j").decode().splitlines()
    assert json.loads(lines[0]) == {"format": "test-journal", "format_version": 1, "data": "abc", "split": "auto"}
    assert list(map(json.loads, lines[1:])) == ROWS
    assert list(read_journal(tmp_path / "j", HEADER).rows()) == ROWS


def test_a_file_cut_at_any_byte_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    complete = written(path)
    for cut in range(len(complete)):
        path.write_bytes(complete[:cut])
        with Journal(path, HEADER) as journal:
            done = len(list(journal.rows()))
            assert done == max(0, complete[:cut].count(b"\n") - 1)
            journal.write(ROWS[done:])
        assert path.read_bytes() == complete


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_writer_loses_no_row_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    header = JournalHeader("test-journal", 1, {"data": "abc"})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.random() / 10)
            process.send_signal(signal.SIGKILL)
            reported = process.stdout.read().split()
        rows = [row["number"] for row in read_journal(path, header).rows()]
        assert rows == list(range(len(rows)))
        assert not reported or len(rows) > int(reported[-1])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"data": "xyz", "split": "auto"}, "was begun with data 'abc' and this run has 'xyz'"),
        ({"data": "abc", "split": "lines"}, "was begun with split 'auto'"),
        ({"data": "abc"}, "was begun with split 'auto' and this run has None"),
        ({"data": "abc", "split": "auto", "limit": 5}, "was begun with limit None and this run has 5"),
    ],
)
def test_the_journal_of_another_run_is_refused_and_not_changed(
    tmp_path: Path, asked: dict[str, Any], sentence: str
) -> None:
    before = written(tmp_path / "j")
    with pytest.raises(InputError, match=sentence):
        Journal(tmp_path / "j", JournalHeader("test-journal", 1, asked))
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize("content", [b"a text", b'{"id": 1}\n', b"\xff\xfe\x00", b'{"format": "other"}\n', b"[" * 9])
def test_another_file_is_refused_and_not_changed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    for use in (lambda: Journal(path, HEADER), lambda: check_journal(path, HEADER), lambda: read_journal(path, HEADER)):
        with pytest.raises(InputError, match="is not a test file"):
            use()
    assert path.read_bytes() == content


def test_a_newer_version_is_named(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with pytest.raises(InputError, match="format version 1 and this edge-prm reads 2"):
        read_journal(tmp_path / "j", JournalHeader("test-journal", 2))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    content = written(tmp_path / "j").splitlines(keepends=True)
    for damage in (b"{\n", b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n"):
        (tmp_path / "j").write_bytes(b"".join([*content[:3], damage, *content[3:]]))
        with pytest.raises(InputError, match="line 4 is not a line of a test file"):
            list(read_journal(tmp_path / "j", HEADER).rows())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", HEADER) as journal:
        with pytest.raises(InputError, match="is being written by another process"):
            Journal(tmp_path / "j", HEADER)
        journal.write(ROWS[:1])
    with Journal(tmp_path / "j", HEADER) as journal:
        assert list(journal.rows()) == ROWS[:1]


def test_a_row_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", HEADER) as journal:
        for row, error in (({"reward": float("nan")}, ValueError), ({"reward": object()}, TypeError)):
            with pytest.raises(error):
                journal.write([ROWS[0], row])
    assert list(read_journal(tmp_path / "j", HEADER).rows()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a limit on the size of files")
def test_a_refused_write_keeps_what_was_there(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "j"
    before = written(path)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Journal(path, HEADER) as journal:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, usual[1]))
            with pytest.raises(OutputError, match=r"cannot be written: .*; what it holds is kept, run the same again"):
                journal.write(ROWS)
            assert path.read_bytes() == before
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            journal.write(ROWS[:1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(read_journal(path, HEADER).rows()) == [*ROWS, ROWS[0]]


@pytest.mark.parametrize(("name", "reason"), [("", "it is a folder"), ("no/file", "there is no folder")])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(OutputError, match=reason):
        Journal(tmp_path / name, HEADER)


def test_threads_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", HEADER, sync_seconds=1) as journal:
        threads = [
            threading.Thread(target=lambda t=t: [journal.write([{"thread": t, "row": r}]) for r in range(200)])
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = list(read_journal(tmp_path / "j", HEADER).rows())
    assert [row["row"] for row in rows if row["thread"] == 2] == list(range(200))
    assert len(rows) == 800
