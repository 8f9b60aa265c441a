"""ONNX Runtime, with graphs of our own.

Runs have more rows than were asked for where that keeps bits equal: see `edge_prm.backends.onnx.rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends import EngineOptions, check_trim, chunks
from edge_prm.backends.onnx.batch import GPU_BATCH_TOKENS, BatchRunner
from edge_prm.backends.onnx.cache import Cache, DeviceCache, HostCache, Resizer, reserved_tokens
from edge_prm.backends.onnx.rows import beginning, missing_reads, missing_tokens, most_missing
from edge_prm.backends.onnx.session import LAST_POSITION as LAST_POSITION
from edge_prm.backends.onnx.session import MODEL_NAME as MODEL_NAME
from edge_prm.backends.onnx.session import TOTAL_LENGTH as TOTAL_LENGTH
from edge_prm.backends.onnx.session import OnnxSession
from edge_prm.bundle import Bundle
from edge_prm.errors import DeviceMemoryError

CHUNK_TOKENS, GPU_CHUNK_TOKENS = 256, 2048
CAPACITY_STEP = 256


def load_model(bundle: Bundle, options: EngineOptions) -> OnnxModel:
    """Load a graph; raises as `edge_prm.backends.load_model` does."""
    return OnnxModel(bundle, options)


class OnnxModel:
    """A graph of our own in ONNX Runtime. Safe to be called from several threads, which take turns."""

    def __init__(self, bundle: Bundle, options: EngineOptions = EngineOptions()) -> None:  # noqa: B008 - frozen
        self.architecture = bundle.manifest.architecture
        self.context_length = bundle.manifest.context_length
        self._session = OnnxSession(bundle, options)
        self._batched = TOTAL_LENGTH in {entry.name for entry in self._session.engine.get_inputs()}
        self._resizer = Resizer(self._session.placement) if self._batched else None
        self.batches = self._batches(options)

    def _batches(self, options: EngineOptions) -> BatchRunner | None:
        default = GPU_BATCH_TOKENS if self.on_gpu else 0
        limit = default if options.batch_tokens is None else options.batch_tokens
        if self._resizer is None or not limit:
            return None
        return BatchRunner(self._session, self.architecture, self._resizer, limit)

    @property
    def device(self) -> str:
        """The device in a word: `cpu`, `cuda:0`, or the name of another execution provider."""
        return self._session.placement.device

    @property
    def on_gpu(self) -> bool:
        """Whether keys and values are in the memory of a GPU."""
        return self._session.placement.memory != "cpu"

    @property
    def chunk_tokens(self) -> int:
        """The most tokens of a run: few enough that a CPU's cache holds their activations, many for a GPU."""
        return GPU_CHUNK_TOKENS if self.on_gpu else CHUNK_TOKENS

    def capacity_for(self, tokens: int) -> int:
        """The room that a sequence of `tokens` gets: on a CPU, what it may grow into is reserved ahead."""
        ahead = 0 if self._resizer is not None else reserved_tokens(self.architecture)
        return _rounded(max(tokens, min(ahead, self.context_length)))

    def cache(self, capacity: int) -> Cache:
        """Room for the keys and values of one sequence."""
        if self._resizer is not None:
            return DeviceCache(self.architecture, capacity, self._resizer)
        return HostCache(self.architecture, capacity)

    def start(self) -> OnnxBackend:
        """Return an empty sequence; BackendError when a file of the weights was overwritten."""
        self._session.check()
        return OnnxBackend(self)

    def close(self) -> None:
        """Free the weights, after a run of another thread."""
        self._session.close()

    def end_profiling(self) -> Path:
        """End a profile (engine option `enable_profiling`) and return the file that ONNX Runtime wrote."""
        return Path(self._session.engine.end_profiling())

    def run(
        self, ids: npt.NDArray[np.int64], read_at: npt.NDArray[np.int64], offset: int, cache: Cache
    ) -> npt.NDArray[np.float32]:
        """Run one chunk after `offset` tokens of `cache`; rewards float32 `[len(read_at)]`."""

        def call(session: Any, options: Any) -> npt.NDArray[np.float32]:
            binding = session.io_binding()
            for name, values in self._inputs(ids, offset).items():
                binding.bind_cpu_input(name, values)
            binding.bind_cpu_input("read_at", read_at)
            cache.bind(binding)
            binding.bind_output("rewards", "cpu")
            session.run_with_iobinding(binding, options)
            rewards: npt.NDArray[np.float32] = binding.get_outputs()[-1].numpy()
            return rewards

        return self._session.run(call, offset, len(ids))

    def _inputs(self, ids: npt.NDArray[np.int64], offset: int) -> dict[str, npt.NDArray[Any]]:
        """Token ids and lengths, as the graph takes them."""
        if not self._batched:
            return {"input_ids": ids, "offset": np.array([offset], dtype=np.int32)}
        total = np.array([offset + len(ids)], dtype=np.int32)
        return {"input_ids": ids[None], LAST_POSITION: total - 1, TOTAL_LENGTH: total}


class OnnxBackend:
    """One sequence on an OnnxModel; see `edge_prm.backends.Backend` for the contract."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._offset = 0
        self._computed = 0
        self._ids = np.empty(0, dtype=np.int64)
        self._cache = model.cache(0)

    @property
    def offset(self) -> int:
        """Tokens that the cache holds."""
        return self._offset

    @property
    def computed(self) -> int:
        """Tokens run through the model since the start."""
        return self._computed

    def extend(self, ids: npt.NDArray[np.int64], read_at: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append `ids`, int64 `[tokens]`; the rewards at `read_at`, float32 `[len(read_at)]`."""
        self._reserve(self._offset + len(ids) + most_missing())
        rewards = [self._run(chunk, wanted) for chunk, wanted in chunks(ids, read_at, self._model.chunk_tokens)]
        return np.concatenate(rewards)

    def _run(self, ids: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        start, held = beginning(self._offset), self._ids[: self._offset]
        run_ids = np.concatenate([held[start:], ids])
        run_ids = np.append(run_ids, np.repeat(ids[-1:], missing_tokens(len(run_ids))))
        wanted = wanted + (self._offset - start)
        padding = np.full(missing_reads(len(wanted)), len(run_ids) - 1, dtype=np.int64)
        rewards = self._model.run(run_ids, np.concatenate([wanted, padding]), start, self._cache)
        self._ids = np.concatenate([held, ids])
        self._offset += len(ids)
        self._computed += len(run_ids)
        return rewards[: len(wanted)]

    def trim(self, to: int) -> None:
        """Forget all but the first `to` tokens; no data is copied."""
        check_trim(to, self._offset)
        self._offset = to

    def branch(self) -> OnnxBackend:
        """Return a second sequence that begins with what this one holds."""
        other = OnnxBackend(self._model)
        other._cache = self._resized(self._model.capacity_for(self._offset), _rounded(self._offset))
        other._offset, other._ids = self._offset, self._ids
        return other

    def close(self) -> None:
        """Free the cache."""
        self._offset, self._ids = 0, self._ids[:0]
        self._cache = self._model.cache(0)

    def _reserve(self, tokens: int) -> None:
        """Make room for `tokens`; a sequence that keeps growing doubles, so that it is seldom copied."""
        capacity = self._cache.capacity
        if tokens > capacity:
            most = min(2 * capacity, self._model.context_length)
            self._cache = self._resized(max(self._model.capacity_for(tokens), most), _rounded(tokens))

    def _resized(self, capacity: int, fewest: int) -> Cache:
        """This cache with room for `capacity` tokens, or for `fewest` where memory is short."""
        try:
            return self._cache.resized(capacity, self._offset)
        except DeviceMemoryError:
            if capacity <= fewest:
                raise
            return self._cache.resized(fewest, self._offset)


def _rounded(tokens: int) -> int:
    return -(-tokens // CAPACITY_STEP) * CAPACITY_STEP
