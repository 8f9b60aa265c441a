"""llama.cpp, through llama-cpp-python's low-level API.

One context holds the cells of all sequences of a model, so a branch shares the cells of its beginning instead of
copying them; when they run out, the context is made twice as large and takes over what it held. Only read positions
have outputs. A sigmoid head is two rows of the output matrix, so its reward comes from two logits; other heads are
applied here, in numpy fp32, to hidden states.

llama.cpp multiplies runs of different lengths with different kernels: rewards are close, not equal, in other pieces.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends.gguf_file import Head, check_gguf
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, MissingExtraError

MODEL_NAME = "model.gguf"
HEAD_NAME = "reward_head.npz"
BATCH_TOKENS = 512
FIRST_CELLS = 2048
MOST_SEQUENCES = 64
RESIDUAL_STEP = 128.0
_NO_CELLS = 1  # what llama_decode returns when the context is full

Floats = npt.NDArray[np.float32]


def load_model(bundle: Bundle, threads: int | None, device: str) -> GgufModel:
    return GgufModel(bundle, threads, device)


class GgufModel:
    """A GGUF file in llama.cpp. Runs one batch at a time; safe to be called from several threads."""

    def __init__(self, bundle: Bundle, threads: int | None, device: str) -> None:
        try:
            import llama_cpp
        except ImportError:
            raise MissingExtraError("gguf", ["llama-cpp-python"]) from None
        path = bundle.folder / MODEL_NAME
        self.head = check_gguf(path, bundle.manifest.architecture, bundle.folder / HEAD_NAME)
        self._llama = llama_cpp
        self._threads = threads or os.cpu_count() or 1
        self._lock = threading.RLock()
        self._silence()
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0 if device == "cpu" else 999
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise BackendError(f"llama.cpp cannot load {path}; verify the bundle with `edge-prm check`")
        self._cells = FIRST_CELLS
        self._context = self._make_context(self._cells)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._free = list(range(MOST_SEQUENCES))[::-1]

    def start(self) -> GgufBackend:
        return GgufBackend(self)

    def close(self) -> None:
        with self._lock:
            if self._model is None:
                return
            self._llama.llama_batch_free(self._batch)
            self._llama.llama_free(self._context)
            self._llama.llama_model_free(self._model)
            self._model = self._context = None

    def take_sequence(self) -> int:
        with self._lock:
            self._check_open()
            if not self._free:
                raise BackendError(f"{MOST_SEQUENCES} sequences are open; close a session before another is started")
            return self._free.pop()

    def give_back(self, sequence: int) -> None:
        with self._lock:
            if self._model is not None:
                self.remove(sequence, 0)
            self._free.append(sequence)

    def remove(self, sequence: int, start: int) -> None:
        """Forget a sequence from position `start` on; cells that others share stay."""
        with self._lock:
            self._check_open()
            self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""
        with self._lock:
            self._check_open()
            self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def run(self, sequence: int, ids: npt.NDArray[np.int64], offset: int, read_at: Sequence[int]) -> Floats:
        """Run one batch behind `offset` tokens of a sequence; rewards at `read_at`."""
        with self._lock:
            self._check_open()
            batch, wanted = self._batch, set(read_at)
            batch.n_tokens = len(ids)
            for index, id_ in enumerate(ids.tolist()):
                batch.token[index], batch.pos[index], batch.n_seq_id[index] = id_, offset + index, 1
                batch.seq_id[index][0], batch.logits[index] = sequence, index in wanted
            status = self._llama.llama_decode(self._context, batch)
            while status == _NO_CELLS:
                self._grow()
                status = self._llama.llama_decode(self._context, batch)
            if status != 0:
                self._llama.llama_memory_seq_rm(self._memory, sequence, offset, -1)
                raise BackendError(f"llama.cpp failed at token {offset} (llama_decode gave {status})")
            return np.array([self._reward(index) for index in read_at], dtype=np.float32)

    def _reward(self, index: int) -> float:
        head = self.head
        if head.row is not None:
            logits = self._llama.llama_get_logits_ith(self._context, index)
            logit = (logits[head.row] + logits[head.residual_row] / RESIDUAL_STEP) / head.scale + head.bias
            return float(1 / (1 + np.exp(-np.float64(logit))))
        pointer = self._llama.llama_get_embeddings_ith(self._context, index)
        return head.apply(np.ctypeslib.as_array(pointer, (head.layers[0][0].shape[1],)))

    @property
    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._context)

    def _make_context(self, cells: int) -> Any:
        llama = self._llama
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = cells, BATCH_TOKENS, BATCH_TOKENS
        options.n_seq_max, options.kv_unified = MOST_SEQUENCES, True
        options.n_threads = options.n_threads_batch = self._threads
        if self.head.row is None:
            options.embeddings, options.pooling_type = True, llama.LLAMA_POOLING_TYPE_NONE
        context = llama.llama_init_from_model(self._model, options)
        if not context:
            raise BackendError(f"llama.cpp has no memory for a cache of {cells} tokens; open fewer or shorter sessions")
        return context

    def _grow(self) -> None:
        """Twice the cells; what the context holds moves over, shared cells stay shared."""
        llama = self._llama
        size = llama.llama_state_get_size(self._context)
        state = (ctypes.c_uint8 * size)()
        written = llama.llama_state_get_data(self._context, state, size)
        larger = self._make_context(2 * self._cells)
        if llama.llama_state_set_data(larger, state, written) != written:
            llama.llama_free(larger)
            raise BackendError(f"llama.cpp could not move {self._cells} cached tokens to a larger context")
        llama.llama_free(self._context)
        self._context, self._cells = larger, 2 * self._cells

    def _check_open(self) -> None:
        if self._model is None:
            raise BackendError("the model is closed; load it again")

    def _silence(self) -> None:
        """Errors come back as values; the engine's own lines on stderr help nobody."""
        self._quiet = self._llama.llama_log_callback(lambda level, text, data: None)
        self._llama.llama_log_set(self._quiet, ctypes.c_void_p(0))


class GgufBackend:
    """One sequence of a GgufModel; see `edge_prm.backends.Backend` for the contract."""

    def __init__(self, model: GgufModel) -> None:
        self._model = model
        self._sequence: int | None = None
        self._offset = 0
        self._computed = 0

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def computed(self) -> int:
        return self._computed

    def extend(self, ids: npt.NDArray[np.int64], read_at: Sequence[int]) -> Floats:
        tokens, wanted = np.asarray(ids, dtype=np.int64), np.asarray(read_at, dtype=np.int64)
        if len(tokens) == 0:
            raise BackendError("there are no tokens to extend by")
        if self._sequence is None:
            self._sequence = self._model.take_sequence()
        rewards = []
        for start in range(0, len(tokens), BATCH_TOKENS):
            batch = tokens[start : start + BATCH_TOKENS]
            inside = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
            rewards.append(self._model.run(self._sequence, batch, self._offset, inside.tolist()))
            self._offset += len(batch)
            self._computed += len(batch)
        return np.concatenate(rewards)

    def trim(self, to: int) -> None:
        if not 0 <= to <= self._offset:
            raise BackendError(f"cannot trim to {to} tokens: the cache holds {self._offset}")
        if self._sequence is not None:
            self._model.remove(self._sequence, to)
        self._offset = to

    def branch(self) -> GgufBackend:
        other = GgufBackend(self._model)
        if self._sequence is not None:
            other._sequence = self._model.take_sequence()
            self._model.copy(self._sequence, other._sequence)
            other._offset = self._offset
        return other

    def close(self) -> None:
        self._offset = 0
        if self._sequence is not None:
            sequence, self._sequence = self._sequence, None
            self._model.give_back(sequence)

    def __del__(self) -> None:
        if getattr(self, "_sequence", None) is not None:
            self.close()
