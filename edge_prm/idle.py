"""The sequence that is kept between two calls, so that the second computes only what the first did not."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edge_prm.judges import Judge, Scorer

IDLE_TOKENS = 4096
"""A sequence that holds more than this is not kept for the next call: its KV cache would be hundreds of megabytes."""


class IdleScorer:
    """Lends one scorer of a judge, with the last text still in it. Safe to use from several threads."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._idle: Scorer | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    @contextmanager
    def lend(self) -> Iterator[Scorer]:
        """Lend the idle scorer, or a new one when another thread has it; BackendError when there can be none."""
        self._notice_fork()
        scorer = self._swap(None) or self._judge.start()
        keep = False
        try:
            yield scorer
            keep = scorer.tokens <= IDLE_TOKENS  # after an error it is not lent again
        finally:
            surplus = self._swap(scorer) if keep else scorer  # another thread's may have come back before
            if surplus is not None:
                surplus.close()

    def forget(self) -> None:
        """Free the KV cache that is kept; the next call computes its text from the start."""
        if (scorer := self._swap(None)) is not None:
            scorer.close()

    def drop(self) -> None:
        """Keep nothing, and leave the cache to the model, which is about to be closed."""
        self._swap(None)

    def _swap(self, scorer: Scorer | None) -> Scorer | None:
        with self._lock:
            held, self._idle = self._idle, scorer
        return held

    def _notice_fork(self) -> None:
        if os.getpid() != self._process:  # in a forked child the lock may be held by a thread that is not there
            self._judge.start()  # an engine that cannot be used here says so
            self._process, self._lock, self._idle = os.getpid(), threading.Lock(), None


def weak(method: Callable[[], None]) -> Callable[[], None]:
    """A method of an object that the result does not keep alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (bound := reference()) is not None:
            bound()

    return call
