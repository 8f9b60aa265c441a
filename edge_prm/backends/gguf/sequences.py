"""Which sequences of a context are free, and how many tokens each holds."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Any

from edge_prm.backends.gguf.context import Context, round_up
from edge_prm.backends.gguf.llama_cpp import Offload
from edge_prm.errors import BackendError

FIRST_CELLS = 2048  # never less than a batch: llama.cpp ends the process for a batch that is larger than its context
FIRST_SEQUENCES = 64  # each takes a row of logits over the vocabulary: 256 would take 150 MB with Qwen's
MAX_SEQUENCES = 256


class Sequences:
    """The sequences of one context. Not thread-safe, but for `release`: GgufModel has the lock."""

    def __init__(self, context: Context, limit: int) -> None:
        self.limit = limit
        self._context = context
        self._free: list[int] = []
        self._released: deque[int] = deque()
        self._held: dict[int, int] = {}
        """Sequence -> tokens that it has in the context, or may have after a run that was interrupted."""

    def open(self, path: Path, offload: Offload) -> None:
        """Load the weights and make a small context; BackendError with the engine's reason."""
        self._context.open(path, offload, FIRST_CELLS, min(FIRST_SEQUENCES, self.limit))
        self._free = list(range(self._context.sequences))[::-1]

    def acquire(self) -> int | None:
        """The number of a free sequence; None when there is none at the moment."""
        return self._free.pop() if self._free else None

    def release(self, sequence: int) -> None:
        """Give a sequence back. Only enqueues it, so that the garbage collector may call this during a run."""
        self._released.append(sequence)

    def held(self, sequence: int) -> int:
        """Tokens that a sequence may have in the context."""
        return self._held.get(sequence, 0)

    def hold(self, sequence: int, tokens: int) -> None:
        """Count the tokens that a run is about to leave in a sequence."""
        self._held[sequence] = tokens

    def remove(self, sequence: int, start: int) -> None:
        """Forget a sequence from position `start` on."""
        self._context.remove(sequence, start)
        self._held[sequence] = start

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""
        self._context.copy(source, target)
        self._held[target] = self.held(source)

    def add(self) -> bool:
        """Make room for twice as many sequences, up to the limit; False at the limit.

        BackendError when there is no memory for them.
        """
        before, after = self._context.sequences, min(2 * self._context.sequences, self.limit)
        if after <= before:
            return False
        self._context.resize(self._context.cells, after)
        self._free += list(range(before, after))[::-1]
        return True

    def reap(self, coming: int = 0) -> None:
        """Free the cells of released sequences, and shrink a context that is much larger than what is held.

        `coming`: tokens that are about to be added. BackendError when the model is closed.
        """
        if not self._context.is_open:
            raise BackendError("the model is closed; load it again")
        while self._released:
            sequence = self._released.popleft()
            self.remove(sequence, 0)
            self._free.append(sequence)
        needed = 2 * (sum(self._held.values()) + coming)  # cells that branches share are counted more than once
        if self._context.cells > FIRST_CELLS and 2 * needed <= self._context.cells:
            with contextlib.suppress(BackendError):  # then it stays as large as it is
                self._context.resize(max(FIRST_CELLS, round_up(needed)))

    def grow(self, tokens: int) -> None:
        """Make the context larger for `tokens` more; BackendError when there is no memory for it."""
        self._context.resize(max(2 * self._context.cells, round_up(self._context.cells + tokens)))


def max_sequences(llama_cpp: Any) -> int:
    """How many sequences a context may hold with this version of llama.cpp."""
    limit = getattr(llama_cpp, "llama_max_parallel_sequences", lambda: 64)
    return min(MAX_SEQUENCES, int(limit()))
