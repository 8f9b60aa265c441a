"""Several texts in one run of a graph that takes batches: padded on the right, each read at its own positions.

A token does not depend on later ones, so padding changes no reward. Keys and values are thrown away after the run: the
attention operator takes no second run of a batch after a first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_prm.arrays import Float32, Int64
from edge_prm.backends.onnx.cache import DeviceCache, Resizer
from edge_prm.backends.onnx.rows import missing_reads, missing_tokens
from edge_prm.backends.onnx.session import LAST_POSITION, TOTAL_LENGTH, OnnxSession
from edge_prm.manifest import Architecture

GPU_BATCH_TOKENS = 16_384
"""The most tokens of a batch on a GPU, padding included: a 1.5B takes 0.5 GB of keys and values for them, and about 1
GB of activations."""


class BatchRunner:
    """Runs texts together on an OnnxSession; `limit` tokens at most, padding included."""

    def __init__(self, session: OnnxSession, shape: Architecture, resizer: Resizer, limit: int) -> None:
        self.limit = limit
        self._session = session
        self._shape = shape
        self._resizer = resizer

    def rewards(self, texts: Sequence[Int64], read_at: Sequence[Sequence[int]]) -> list[Float32]:
        """Rewards of each text, float32 `[len(read_at[i])]`. BackendError when the engine fails."""
        ids = padded(texts)
        batch, width = ids.shape
        wanted = positions(read_at, width)
        extra = np.zeros(missing_reads(len(wanted)), dtype=np.int64)
        cache = DeviceCache(self._shape, width, self._resizer, batch)

        def call(session: Any, options: Any) -> Float32:
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", ids)
            binding.bind_cpu_input("read_at", np.concatenate([wanted, extra]))
            binding.bind_cpu_input(LAST_POSITION, np.full(batch, width - 1, dtype=np.int32))
            binding.bind_cpu_input(TOTAL_LENGTH, np.array([width], dtype=np.int32))
            cache.bind(binding)
            binding.bind_output("rewards", "cpu")
            session.run_with_iobinding(binding, options)
            found: Float32 = binding.get_outputs()[-1].numpy()
            return found

        rewards = self._session.run(call, 0, ids.size)[: len(wanted)]
        return np.split(rewards, np.cumsum([len(at) for at in read_at])[:-1])


def padded(texts: Sequence[Int64]) -> Int64:
    """Token ids of texts as int64 `[b, width]`, each filled up with its own last token."""
    width = max(map(len, texts))
    width += missing_tokens(width)
    return np.stack([np.pad(ids, (0, width - len(ids)), mode="edge") for ids in texts])


def positions(read_at: Sequence[Sequence[int]], width: int) -> Int64:
    """Read positions of each text as indices into all rows of a batch, int64 `[r]`."""
    return np.concatenate([np.asarray(at, dtype=np.int64) + index * width for index, at in enumerate(read_at)])
