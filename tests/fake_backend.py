"""A backend without an engine: the reward at a token is a hash of all ids up to and including it.

So a reward is right only if the backend was given exactly the right tokens in the right order, whatever the pieces.
It counts what it computes, runs a lone token together with the one before it as a real engine may, and can be told to
fail half-way.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.errors import BackendError

Ids = npt.NDArray[np.int64]


def reward_of(ids: Ids) -> np.float32:
    """The reward that a text of these tokens ends with, in (0, 1)."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i8").tobytes(), digest_size=4).digest()
    return np.float32((int.from_bytes(digest, "little") % 9998 + 1) / 10000)


class FakeModel:
    """Hands out FakeBackends; `fail_after` extends of any of them from now on, one fails half-way."""

    def __init__(self) -> None:
        self.fail_after: int | None = None
        self.not_a_number = False
        self.started: list[FakeBackend] = []
        self.closed = False
        self.spare: Callable[[], None] | None = None
        self.batches: Any = None

    def start(self) -> FakeBackend:
        backend = FakeBackend(self)
        self.started.append(backend)
        return backend

    def close(self) -> None:
        self.closed = True

    @property
    def computed(self) -> int:
        return sum(backend.computed for backend in self.started)


class FakeBackend:
    """See `edge_prm.backends.Backend` for the contract."""

    def __init__(self, model: FakeModel, ids: Ids | None = None) -> None:
        self._model = model
        self._ids: Ids = np.empty(0, dtype=np.int64) if ids is None else ids
        self._computed = 0
        self._owner: int | None = None
        self.closed = False

    @property
    def offset(self) -> int:
        return len(self._ids)

    @property
    def computed(self) -> int:
        return self._computed

    def extend(self, ids: Ids, read_at: Sequence[int]) -> npt.NDArray[np.float32]:
        assert self._owner in (None, threading.get_ident()), "two threads in one sequence"
        assert ids.dtype == np.int64
        assert len(ids) > 0
        assert list(read_at) == sorted(read_at)
        assert all(0 <= at < len(ids) for at in read_at)
        self._owner = threading.get_ident()
        try:
            if self._model.fail_after is not None:
                self._model.fail_after -= 1
                if self._model.fail_after < 0:
                    self._model.fail_after = None
                    self._ids = np.concatenate([self._ids, ids[: len(ids) // 2]])
                    raise BackendError("the engine failed half-way")
            start = self.offset
            self._computed += len(ids) + (len(ids) == 1 and start > 0)
            self._ids = np.concatenate([self._ids, ids])
            if self._model.not_a_number:
                return np.full(len(read_at), np.nan, dtype=np.float32)
            return np.array([reward_of(self._ids[: start + at + 1]) for at in read_at], dtype=np.float32)
        finally:
            self._owner = None

    def trim(self, to: int) -> None:
        if not 0 <= to <= self.offset:
            raise BackendError(f"cannot trim to {to} tokens: the cache holds {self.offset}")
        self._ids = self._ids[:to]

    def branch(self) -> FakeBackend:
        other = FakeBackend(self._model, self._ids)
        self._model.started.append(other)
        return other

    def close(self) -> None:
        self.closed = True
        self._ids = self._ids[:0]
