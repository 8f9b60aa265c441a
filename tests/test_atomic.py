"""An output folder comes complete or not at all, nothing of others is deleted, and a killed run's leftovers go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_prm.errors import CheckpointError, ExportError, OutputExistsError
from edge_prm.manifest import MANIFEST_NAME
from edge_prm_export import output as atomic
from edge_prm_export import rename
from edge_prm_export.output import LOCK_NAME, atomic_folder, remove_leftovers

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL and no flock")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_bundle(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / MANIFEST_NAME).write_text(text)
    return folder


@pytest.fixture(params=["system", "substitute"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's own renames, and where it has none."""
    if request.param == "substitute":
        monkeypatch.setattr(rename, "_rename", lambda *_: False)
    return request.param


def test_a_folder_is_written_complete(tmp_path: Path, renames: str) -> None:
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("text")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "text"
    assert names(tmp_path / "deep") == ["out"]
    if os.name != "nt":
        mask = os.umask(0)
        os.umask(mask)
        assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("error", [CheckpointError("bad"), KeyboardInterrupt(), OSError(28, "No space left"), MemoryError()])  # fmt: skip
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: BaseException, replace: bool) -> None:
    target = make_bundle(tmp_path / "out", "old") if replace else tmp_path / "deep" / "out"
    before = names(tmp_path)
    with pytest.raises(BaseException) as caught, atomic_folder(target, replace) as folder:  # noqa: PT011, PT012
        (folder / MANIFEST_NAME).write_text("new")
        raise error
    assert names(tmp_path) == before
    assert not replace or (target / MANIFEST_NAME).read_text() == "old"
    said = {OSError: "out: the disk is full", MemoryError: "not enough memory to export"}.get(type(error))
    if said:
        assert isinstance(caught.value, ExportError)
        assert not isinstance(caught.value, CheckpointError)
        assert said in str(caught.value)
    else:
        assert caught.value is error


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link", "bundle"])
def test_what_appears_while_an_export_runs_is_left_as_it_is(tmp_path: Path, kind: str, renames: str) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError, match="appeared while the export ran"), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "file").write_text("mine")
        if kind == "file":
            target.write_text("theirs")
        elif kind == "link":
            target.symlink_to("nowhere")
        else:
            target.mkdir()
            if kind != "empty folder":
                (target / ("thesis.tex" if kind == "folder" else MANIFEST_NAME)).write_text("theirs")
    assert names(tmp_path) == ["out"]
    assert kind != "link" or os.readlink(target) == "nowhere"
    assert kind != "file" or target.read_text() == "theirs"
    assert kind != "folder" or (target / "thesis.tex").read_text() == "theirs"
    assert kind != "empty folder" or names(target) == []


def test_a_bundle_is_replaced_where_that_is_asked_for(tmp_path: Path, renames: str) -> None:
    target = make_bundle(tmp_path / "out", "old")
    with atomic_folder(target, replace=True) as folder:
        (folder / MANIFEST_NAME).write_text("new")
        assert (target / MANIFEST_NAME).read_text() == "old"
    assert (target / MANIFEST_NAME).read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_replaced_bundle_may_be_gone_by_then(tmp_path: Path, renames: str) -> None:
    target = make_bundle(tmp_path / "out", "old")
    with atomic_folder(target, replace=True) as folder:
        (folder / MANIFEST_NAME).write_text("new")
        (target / MANIFEST_NAME).unlink()
        target.rmdir()
    assert (target / MANIFEST_NAME).read_text() == "new"


def test_a_users_folder_is_never_replaced_even_if_it_takes_the_place_of_a_bundle(tmp_path: Path, renames: str) -> None:
    target = make_bundle(tmp_path / "out", "old")
    with pytest.raises(ExportError, match="is not an edge-prm bundle"), atomic_folder(target, replace=True):  # noqa: PT012
        (target / MANIFEST_NAME).unlink()
        (target / "thesis.tex").write_text("years of work")
    assert (target / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["out"]


def test_a_users_folder_that_appears_at_the_very_last_moment_comes_back(
    tmp_path: Path, renames: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_bundle(tmp_path / "out", "old")

    def check_and_swap(path: Path, replace: bool) -> None:
        (target / MANIFEST_NAME).unlink()
        (target / "thesis.tex").write_text("years of work")

    monkeypatch.setattr(atomic, "check_output", check_and_swap)
    with pytest.raises(ExportError, match="is not an edge-prm bundle"), atomic_folder(target, replace=True):
        pass
    assert (target / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["out"]


def test_of_two_exports_to_one_place_the_second_is_refused(tmp_path: Path) -> None:
    target, results = tmp_path / "out", []
    inside, first_is_done = threading.Event(), threading.Event()

    def second() -> None:
        try:
            with atomic_folder(target) as folder:
                (folder / "file").write_text("second")
                inside.set()
                first_is_done.wait(60)
        except OutputExistsError as error:
            results.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    assert inside.wait(60)
    with atomic_folder(target) as folder:
        (folder / "file").write_text("first")
    first_is_done.set()
    thread.join(60)
    assert len(results) == 1
    assert (target / "file").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_an_output_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="file is not a folder"), atomic_folder(tmp_path / "file" / "deep" / "out"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


# killed processes

KILLED = """
import os, signal, sys
from pathlib import Path
from edge_prm_export import output as atomic
from edge_prm_export import rename
target, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if "substitute" in moment:
    rename._rename = lambda *_: False
if moment == "before the lock":
    os.open = die
if moment == "between the substitute's renames":
    atomic.rename_new = die
if moment == "after the exchange":
    atomic._replaceable = lambda path: die() if path.name == "new" else True
if moment == "while the old one is removed":
    atomic.shutil.rmtree = lambda path, **_: (os.unlink(path / "edge_prm.json"), die())
with atomic.atomic_folder(target, replace=len(sys.argv) > 3) as folder:
    (folder / "edge_prm.json").write_text("new")
    (folder / "weights").write_bytes(bytes(1000))
    if moment == "while it is written":
        die()
    if moment == "wait":
        print("ready", flush=True); sys.stdin.readline()
if moment == "after the rename":
    die()
"""


def start(target: Path, moment: str, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, str(target), moment, *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@posix
@pytest.mark.parametrize(
    "moment",
    [
        *("before the lock", "while it is written", "after the exchange", "while the old one is removed"),
        *("between the substitute's renames", "after the rename"),
    ],
)
def test_a_kill_at_any_moment_leaves_a_bundle_or_none_and_nothing_after_the_next_run(
    tmp_path: Path, moment: str
) -> None:
    target = make_bundle(tmp_path / "out[1]", "old")  # a name that a glob would take for a pattern
    assert start(target, moment, "replace").wait(60) == -signal.SIGKILL
    remove_leftovers(target)  # an export does it before it looks at its output
    assert names(tmp_path) == ["out[1]"]
    kept = moment in ("before the lock", "while it is written", "between the substitute's renames")
    assert (target / MANIFEST_NAME).read_text() == ("old" if kept else "new")
    with atomic_folder(target, replace=True) as folder:
        (folder / MANIFEST_NAME).write_text("newest")
    assert names(tmp_path) == ["out[1]"]


@posix
def test_a_partial_export_of_a_process_that_runs_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    other = start(target, "wait")
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    with atomic_folder(target) as folder:
        (folder / MANIFEST_NAME).write_text("mine")
    assert len(names(tmp_path)) == 2
    remove_leftovers(target)
    assert len(names(tmp_path)) == 2
    other.communicate("\n", timeout=60)
    assert other.returncode != 0, "it is refused: the output appeared while it ran"
    assert (target / MANIFEST_NAME).read_text() == "mine"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", [".out.partial-12345", ".out.partial-backup", ".out.partial-aaaaaaaa", ".out.old-7"])
def test_folders_of_others_are_no_leftovers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    (tmp_path / ".out.partial-bbbbbbbb").write_text("a file")
    (tmp_path / ".out.partial-cccccccc").symlink_to(name)
    (tmp_path / ".other.partial-dddddddd").mkdir()
    (tmp_path / ".other.partial-dddddddd" / LOCK_NAME).touch()
    before = names(tmp_path)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == sorted([*before, "out"])
    assert (tmp_path / name / "thesis.tex").read_text() == "years of work"


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".out.partial-aaaaaaaa"
    left.mkdir()
    (left / LOCK_NAME).touch()
    monkeypatch.setattr(atomic, "lock", lambda _: None)
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [left.name, "out"]
