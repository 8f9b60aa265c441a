"""A thread that makes calls one after the other.

ThreadPoolExecutor is not used for it: when a signal raises an exception while it starts its thread, the thread is not
registered for the interpreter's exit, which then waits for it forever.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

EXIT_SECONDS = 5
"""How long the interpreter's exit waits for a call that has begun."""


class Worker:
    """Makes calls in a thread of its own, which is started for the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._calls, self._threads)

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Return the future result of `call`; RuntimeError after `close`, or when there can be no new thread."""
        if not self._end.alive:
            raise RuntimeError("the worker is closed")
        if not self._threads:  # an interrupt after the start may lead to a second thread, which does no harm
            thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True, name=self._name)
            thread.start()
            self._threads.append(thread)
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """End the thread after the calls that it has, without waiting for them."""
        if self._end.detach() is not None:
            self._calls.put(None)


def _serve(calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (item := calls.get()) is not None:
        future, call = item
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del item, future, call  # so that an idle thread keeps nothing alive
    calls.put(None)  # for a second thread


def _end(calls: SimpleQueue[Any], threads: list[threading.Thread]) -> None:
    """End the thread, and wait a little for a call that has begun: the engine must not run during the exit."""
    calls.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(EXIT_SECONDS)
