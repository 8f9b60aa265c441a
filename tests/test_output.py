"""Files come complete or not at all, and what a killed process left is removed by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_prm.errors import InputError, OutputError
from edge_prm.output import atomic_file, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_complete(tmp_path: Path) -> None:
    write_file(tmp_path / "out.jsonl", "é\n")
    assert (tmp_path / "out.jsonl").read_bytes() == "é\n".encode()
    assert names(tmp_path) == ["out.jsonl"]
    if os.name != "nt":
        mask = os.umask(0)
        os.umask(mask)
        assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    with pytest.raises(InputError), atomic_file(target) as file:  # noqa: PT012
        file.write("new")
        raise InputError("a bad row")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("where", ["missing/out.jsonl", ".", "file/out.jsonl"])
def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / where, "text")


def test_the_systems_errors_are_named(tmp_path: Path) -> None:
    full = pytest.raises(OutputError, match=r"out\.jsonl cannot be written: the disk is full")
    with full, atomic_file(tmp_path / "out.jsonl"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_prm.output import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write("half"); file.flush()
    if sys.argv[2] == "kill": os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True); sys.stdin.readline()
"""


def start(target: Path, what: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(target), what]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL and no flock")
def test_partials_of_killed_processes_are_removed_and_those_of_others_kept(tmp_path: Path) -> None:
    target = tmp_path / "out[1].jsonl"  # a name that a glob would take for a pattern
    assert start(target, "kill").wait() != 0
    assert len(names(tmp_path)) == 1
    other = start(target, "wait")
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    (tmp_path / ".out[1].jsonl.partial-folder").mkdir()
    write_file(target, "mine")
    assert len(names(tmp_path)) == 3  # the file, the partial of the process that still runs, and the folder
    assert target.read_text() == "mine"
    other.communicate("\n", timeout=60)
    assert target.read_text() == "half"  # the last to finish wins
    assert names(tmp_path) == [".out[1].jsonl.partial-folder", "out[1].jsonl"]
