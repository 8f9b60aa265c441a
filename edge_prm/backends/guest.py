"""An engine as a guest in somebody's process: interrupts, forks, and files that change under it.

An engine runs in C++ for seconds, with threads of its own, on files that it maps into memory. Three things follow.

A signal handler of Python runs in the main thread only, and only between two instructions of Python. So the main
thread never runs an engine itself: a thread does, and the main thread waits, which a signal can end.

After a fork the child has the engine's memory without its threads: a run would wait for them for ever, and so would
the engine's destructor. So a child never runs or frees what it got from its parent: it opens the model again where the
engine can do that (ONNX Runtime), and is refused where it cannot (llama.cpp).

A mapped file that is overwritten gives other weights to a model that is loaded, or ends the process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

from edge_prm.backends.worker import Worker
from edge_prm.errors import BackendError, BundleIntegrityError

Result = TypeVar("Result")

SHORT_SECONDS = 0.05
"""A run that is shorter than this is not worth a thread of its own."""


class Guest:
    """The process that a model was loaded in, and the thread that runs its engine for the main thread."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._worker = Worker("edge-prm engine")

    @property
    def at_home(self) -> bool:
        """Whether this is the process that the model was loaded in."""
        return os.getpid() == self._process

    def check(self) -> None:
        """BackendError in a process that was forked after the model was loaded."""
        if not self.at_home:
            raise BackendError(
                f"this model was loaded in process {self._process} and cannot be used in its fork {os.getpid()}: "
                "load the bundle after the fork, in each process, or start processes with the 'spawn' method"
            )

    def run(self, call: Callable[[], Result], stop: Callable[[], None], seconds: float = math.inf) -> Result:
        """Return what `call` returns; an exception that a signal raises in the main thread goes through at once.

        `stop` is then called, from the main thread: it must make a run that has begun end soon, and one that has not
        begun end at its start. `call` may still be running when this method has raised. A call that is expected to take
        few `seconds` is made directly: a signal can wait for its end.
        """
        self.check()
        if seconds < SHORT_SECONDS or threading.current_thread() is not threading.main_thread():  # no signals there
            return call()
        try:
            try:
                future = self._worker.submit(call)
            except RuntimeError:  # at interpreter exit there are no new threads
                return call()
            return future.result()
        except BaseException:
            stop()
            raise

    def finish(self, call: Callable[[], Result], lock: AbstractContextManager[Any] | None = None) -> Result:
        """Return what `call` returns, made with `lock` held; once it has begun, it runs to its end.

        For a change of the engine's state that must not stop half-way. An exception that a signal raises in the main
        thread waits until the change is done; it goes through at once, and nothing is changed, while others hold
        `lock`. The calling thread must not hold it: for the main thread, the engine's thread makes the call.
        """
        self.check()
        change = _Change(call, lock or contextlib.nullcontext())
        if threading.current_thread() is not threading.main_thread():
            return change.make()
        try:
            future = self._worker.submit(change.make)
        except RuntimeError:  # at interpreter exit, or after `close`, there are no new threads
            return change.make()
        pending: BaseException | None = None
        while True:  # through further interrupts
            try:
                if pending is None or not change.cancel():
                    wait([future])
                break
            except BaseException as error:
                pending = pending or error
        if pending is not None:
            raise pending
        return future.result()

    def close(self) -> None:
        """End the thread, once it has nothing to do."""
        self._worker.close()


class _Change(Generic[Result]):
    """A call with a lock, that can be cancelled until it has the lock."""

    def __init__(self, call: Callable[[], Result], lock: AbstractContextManager[Any]) -> None:
        self._call = call
        self._lock = lock
        self._claim = threading.Lock()  # whoever takes it first decides: it is made, or cancelled

    def make(self) -> Result:
        """Make the call, unless it was cancelled; nobody then waits for its result."""
        with self._lock:
            if not self._claim.acquire(blocking=False):
                raise BackendError("the change was cancelled")
            return self._call()

    def cancel(self) -> bool:
        """Whether the call will not be made; False when it has begun."""
        return self._claim.acquire(blocking=False)


class WeightFiles:
    """Weight files that an engine has mapped: are they still what was loaded?

    They are held open, so that only a change of the file itself counts. A file that was put in its place by renaming,
    or that was deleted, leaves the mapped one as it was.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: list[tuple[Path, int, tuple[int, int]]] = []
        opened: list[int] = []
        weakref.finalize(self, _close_all, opened)
        for path in paths:
            try:
                file = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise BundleIntegrityError(path, f"cannot be read ({error.strerror})") from None
            opened.append(file)
            self._files.append((path, file, _version(file)))

    def check(self) -> None:
        """BackendError when a file was overwritten since."""
        for path, file, version in self._files:
            if _version(file) != version:
                raise BackendError(
                    f"{path} was replaced while it was loaded; load the bundle again (and replace a bundle by "
                    "renaming a new folder, never by writing into its files)"
                )

    def check_places(self) -> None:
        """BackendError when a path leads to another file than the one that was opened."""
        self.check()
        for path, file, _ in self._files:
            try:
                same = os.path.samestat(os.stat(path), os.fstat(file))
            except OSError:
                same = False
            if not same:
                raise BackendError(f"{path} was replaced since the parent process loaded it; load the bundle again")


def _version(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns


def _close_all(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def log_fallback(reason: str) -> None:
    """Log, once for each reason, that device `auto` is the CPU here."""
    if reason not in _logged:
        _logged.add(reason)
        logging.getLogger("edge_prm").info("device auto: %s; running on the CPU", reason)


_logged: set[str] = set()


def keep_after_fork(engine: Any) -> None:
    """Call `engine.abandon()` in every child process that is forked while `engine` exists."""
    _engines.add(engine)
    _watch_forks()


def skip_exit_handlers_after_fork() -> None:
    """From now on a forked child ends without the exit handlers of C++ libraries that were loaded before the fork.

    ONNX Runtime starts threads when it is imported, and its handlers wait for them: a child that only imported it hangs
    at its exit. Python's own exit (atexit, finalizers, flushed files) is not touched, nor is the exit code.
    """
    global _skip_exit_handlers
    _skip_exit_handlers = True
    _watch_forks()


def make_immortal(value: object) -> None:
    """Take a reference that nobody gives back, so that a destructor never runs, at interpreter exit either."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_hooked = _skip_exit_handlers = False


def _watch_forks() -> None:
    global _hooked
    if not _hooked and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
        _hooked = True


def _after_fork() -> None:
    for engine in list(_engines):
        engine.abandon()
    if _skip_exit_handlers:
        _exit_first()


def _exit_first() -> None:
    """Register `_exit` as an exit handler of C: the last one that is registered runs first, and gets the exit code.

    Only glibc has `on_exit`. Flushing C's own files is registered after it, so it runs before.
    """
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit") and hasattr(library, "__cxa_atexit"):
        library.on_exit(library._exit, None)
        library.__cxa_atexit(library.fflush, None, None)
