"""Engines as guests in a process: forks, many loads, many processes, files that change."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from processes import HANG_SECONDS, PROMPT, STEPS, posix_only, python

import edge_prm
from edge_prm.bundle import open_bundle
from edge_prm.errors import BackendError, BundleIntegrityError
from edge_prm.prm import PRM

# forks

FORK = """
import os, sys, time
import edge_prm
folder, what = sys.argv[1:]
prm = edge_prm.load(folder)
expected = prm.score("q", ["a", "b"]).rewards
if what == "closed": prm.close()
child = os.fork()
if child == 0:
    if what == "uses":
        refused = os.path.exists(os.path.join(folder, "model.gguf"))
        for use in (lambda: prm.score("q", ["a"]), lambda: prm.session("q").push("a"), lambda: prm.rank("q", ["a"])):
            try: use()
            except edge_prm.EdgePRMError as error: assert refused and "load the bundle after the fork" in str(error), error
            else: assert not refused, "the child scored"
        if not refused: assert prm.score("q", ["a", "b"]).rewards == expected
    if what == "loads":
        assert edge_prm.load(folder).score("q", ["a", "b"]).rewards == expected
    if what == "frees":
        prm.close()
        del prm
    if what == "raises": raise SystemExit("said on stderr")
    print("child done")
    sys.exit(7)
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        assert what == "closed" or prm.score("q", ["a", "b"]).rewards == expected
        print("status", os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    print("the child hangs")
"""


@posix_only
@pytest.mark.parametrize("what", ["nothing", "uses", "loads", "frees", "closed", "raises"])
def test_a_forked_child_opens_the_model_again_or_is_refused_and_ends(demo: Path, what: str) -> None:
    done = python(FORK, demo, what)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == ("status 1" if what == "raises" else "status 7"), done
    assert ("child done" in lines) == (what != "raises")
    assert "Traceback" not in done.stderr
    assert "terminate" not in done.stderr


POOL = """
import multiprocessing, sys
import edge_prm
prm = edge_prm.load(sys.argv[1])
prm.score("q", ["a"])
def work(item): return prm.score("q", ["1 " * item]).score
with multiprocessing.get_context("fork").Pool(2) as pool:
    for items in ([1, 2, 3], [1, 30000]):
        try: pool.map_async(work, items).get(timeout=30)
        except edge_prm.EdgePRMError as error: print(type(error).__name__)
print("done")
"""


@posix_only
def test_a_pool_of_forks_gets_the_error(demo: Path) -> None:
    done = python(POOL, demo)
    assert done.returncode == 0, done.stderr
    if (demo / "model.gguf").exists():
        assert done.stdout.split() == ["BackendError", "BackendError", "done"]
    else:
        assert done.stdout.split() == ["ContextLengthError", "done"]


OVERWRITTEN = """
import os, shutil, sys
import edge_prm
prm = edge_prm.load(sys.argv[1])
os.rename(sys.argv[1], sys.argv[1] + ".old")
shutil.copytree(sys.argv[1] + ".old", sys.argv[1])
prm.score("q", ["a"])
child = os.fork()
if child == 0:
    try: prm.score("q", ["a"])
    except edge_prm.EdgePRMError as error: print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@posix_only
def test_a_forked_child_never_opens_another_bundle_than_its_parent(demo: Path, tmp_path: Path) -> None:
    if (demo / "model.gguf").exists():
        pytest.skip("a GGUF model is refused in a child")
    done = python(OVERWRITTEN, shutil.copytree(demo, tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
    assert "was replaced since the parent process loaded it" in done.stdout


def rewards_of(folder: str) -> tuple[float, ...]:
    with edge_prm.load(folder) as prm:
        return tuple(prm.score(PROMPT, STEPS).rewards)


def test_spawned_processes_give_the_same_rewards(demo: Path) -> None:
    """Three processes, on however few cores."""
    expected = rewards_of(str(demo))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(rewards_of, [str(demo)] * 6, timeout=HANG_SECONDS)) == [expected] * 6


# many loads

LOADS = """
import json, os, sys
import edge_prm
facts = []
for index in range(31):
    prm = edge_prm.load(sys.argv[1])
    prm.score("q", ["a", "b"])
    session = prm.session("q")
    session.push("a")
    if index in (10, 30):
        resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        maps = sum(".gguf" in line or ".onnx" in line for line in open("/proc/self/maps"))
        facts.append([resident / 1e6, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps])
print(json.dumps(facts))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this needs /proc")
def test_models_that_are_forgotten_are_freed(demo: Path) -> None:
    done = python(LOADS, demo)
    assert done.returncode == 0, done.stderr
    early, late = json.loads(done.stdout)
    assert late[0] - early[0] < 100, (early, late)  # megabytes: 20 contexts of llama.cpp take 400
    for before, after in zip(early[1:], late[1:], strict=True):
        assert after <= before + 4, (early, late)


def test_a_model_is_closed_when_its_tokenizer_is_damaged(
    demo: Path, monkeypatch: pytest.MonkeyPatch, fake: object
) -> None:
    def fail(*_: object) -> None:
        raise BundleIntegrityError("tokenizer.json", "not a tokenizer")

    monkeypatch.setattr("edge_prm.prm.Encoder", fail)
    with pytest.raises(BundleIntegrityError, match="not a tokenizer"):
        PRM(open_bundle(demo), model=fake)  # type: ignore[arg-type]
    deadline = time.monotonic() + HANG_SECONDS
    while not fake.closed and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert fake.closed  # type: ignore[attr-defined]


# a bundle that is written to while it is loaded


def weights_of(folder: Path) -> Path:
    return next(path for path in (folder / "model.gguf", folder / "model.onnx.data") if path.exists())


def test_a_file_that_is_overwritten_while_it_is_loaded_is_noticed(demo: Path, tmp_path: Path) -> None:
    folder = copy_of(demo, tmp_path / "own")
    with edge_prm.load(folder) as prm, prm.session(PROMPT) as session:
        session.push(STEPS[0])
        with open(weights_of(folder), "r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"\x01" * 64)
        stamp = weights_of(folder).stat().st_mtime_ns + 10**9
        os.utime(weights_of(folder), ns=(stamp, stamp))  # some file systems count time in seconds
        for use in (lambda: prm.score(PROMPT, STEPS), lambda: session.push(STEPS[1]), lambda: prm.session("q")):
            with pytest.raises(BackendError, match="was replaced while it was loaded; load the bundle again"):
                use()


@posix_only
def test_a_bundle_that_is_replaced_by_renaming_keeps_the_loaded_one(demo: Path, tmp_path: Path) -> None:
    folder, other = copy_of(demo, tmp_path / "own"), copy_of(demo, tmp_path / "other")
    with edge_prm.load(folder) as prm:
        expected = prm.score(PROMPT, STEPS).rewards
        folder.rename(tmp_path / "old")
        other.rename(folder)
        prm.score("another", ["text"])
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=1e-4)
        for path in (tmp_path / "old").iterdir():
            path.unlink()
        assert len(prm.score(PROMPT, STEPS).rewards) == len(STEPS)


def copy_of(folder: Path, target: Path) -> Path:
    """A copy with files of its own."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
