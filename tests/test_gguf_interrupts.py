"""An interrupt never tears a change of the engine's state: it runs to its end first."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import need_engine

from edge_prm.backends import Backend, EngineOptions, Model, load_model
from edge_prm.backends.gguf import sequences as limits
from edge_prm.backends.gguf.context import Context
from edge_prm.backends.guest import Guest
from edge_prm.bundle import open_bundle
from edge_prm.errors import BackendError

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals to oneself are of POSIX"),
    pytest.mark.usefixtures("interruptible"),
]
IDS = np.random.default_rng(5).integers(0, 400, 700)
TOLERANCE = 5e-3
HANG_SECONDS = 30


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where pytest runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a test that failed, one may still come
    time.sleep(0.3)
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_change_that_has_begun_is_done_when_the_interrupt_goes_through() -> None:
    guest, done = Guest(), threading.Event()

    def change() -> None:
        assert threading.current_thread() is not threading.main_thread()
        for _ in range(3):  # a person who is impatient
            interrupt()
            time.sleep(0.05)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        guest.finish(change, threading.Lock())
    assert done.is_set()
    assert guest.finish(lambda: 5) == 5
    guest.close()


def test_a_change_that_waits_for_others_is_cancelled_by_an_interrupt() -> None:
    guest, lock, made = Guest(), threading.Lock(), threading.Event()
    with lock:
        threading.Timer(0.1, interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            guest.finish(made.set, lock)
    assert guest.finish(lambda: 5, lock) == 5  # after the cancelled one, in the same thread
    assert not made.is_set()
    guest.close()


def test_an_error_of_a_change_goes_through_and_other_threads_make_their_own() -> None:
    guest, lock = Guest(), threading.Lock()

    def fail() -> None:
        raise BackendError("failed")

    with pytest.raises(BackendError, match="failed"):
        guest.finish(fail, lock)
    threads: list[threading.Thread] = []
    other = threading.Thread(target=lambda: threads.append(guest.finish(threading.current_thread, lock)))
    other.start()
    other.join(HANG_SECONDS)
    assert threads == [other]
    assert not lock.locked()
    guest.close()
    assert guest.finish(lambda: 5, lock) == 5  # there is no thread any more: the caller makes it


@pytest.fixture
def small(bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """A model whose context is resized often."""
    need_engine("gguf")
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    monkeypatch.setattr(limits, "FIRST_SEQUENCES", 2)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    yield model
    model.close()


def reward(backend: Backend) -> float:
    return float(backend.branch().extend(IDS[50:100], [49])[0])


def test_an_interrupt_while_the_context_is_resized_loses_nothing(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between the copy of the old context and the new one."""
    first, second = small.start(), small.start()
    for backend in (first, second):
        backend.extend(IDS[:50], [])
    third = small.start()
    make, interrupted = Context._make, []

    def interrupt_and_make(self: Context, cells: int, sequences: int) -> object:
        assert self._handles.context is None
        if not interrupted:
            interrupted.append(sequences)
            interrupt()
            time.sleep(0.1)
        return make(self, cells, sequences)

    monkeypatch.setattr(Context, "_make", interrupt_and_make)
    with pytest.raises(KeyboardInterrupt):
        third.extend(IDS[:50], [])
    assert interrupted == [4]
    third.extend(IDS[: 50 - third.offset], [])
    expected = reward(first)
    assert [reward(backend) for backend in (second, third)] == pytest.approx([expected] * 2, abs=TOLERANCE)


def test_an_interrupt_while_a_long_text_is_forgotten_loses_nothing(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, long = small.start(), small.start()
    kept.extend(IDS[:50], [])
    long.extend(np.resize(IDS, 3000), [])
    make, interrupted = Context._make, []

    def interrupt_and_make(self: Context, cells: int, sequences: int) -> object:
        interrupted.append(cells)
        if len(interrupted) == 1:
            interrupt()
            time.sleep(0.1)
        return make(self, cells, sequences)

    monkeypatch.setattr(Context, "_make", interrupt_and_make)
    with pytest.raises(KeyboardInterrupt):
        long.close()
    assert interrupted == [512]
    assert small.cells == 512  # type: ignore[attr-defined]
    alone = small.start()
    alone.extend(IDS[:50], [])
    assert reward(kept) == pytest.approx(reward(alone), abs=TOLERANCE)


def test_interrupts_at_any_moment_leave_a_model_that_can_be_used(small: Model) -> None:
    rng = random.Random(11)
    trunk = small.start()
    expected = float(trunk.extend(IDS[:100], [99])[0])
    trunk.trim(50)
    count = 0
    for _ in range(40):
        timer = threading.Timer(rng.uniform(0, 0.03), interrupt)
        try:
            timer.start()
            end = time.monotonic() + 1  # an interrupt in a finalizer is lost
            while time.monotonic() < end:
                branches = [trunk.branch() for _ in range(rng.randrange(1, 5))]
                branches[0].extend(IDS[50 : rng.randrange(100, 700)], [])
                branches[0].trim(rng.randrange(50, 100))
                for branch in branches:
                    branch.close()
        except KeyboardInterrupt:
            count += 1
        with contextlib.suppress(KeyboardInterrupt):
            timer.join()
            time.sleep(0.005)
        assert reward(trunk) == pytest.approx(expected, abs=TOLERANCE)
    assert count > 20
