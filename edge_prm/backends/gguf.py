"""llama.cpp, through llama-cpp-python's low-level API.

One context holds the cells of all sequences of a model, so a branch shares the cells of its beginning instead of
copying them; when they run out, the context is made twice as large and takes over what it held.

Only read positions have outputs, and of those the hidden state behind the final norm is taken on its way, by the
engine's own callback for watching a computation: the reward head is then applied here in fp32. (The API's embeddings
would make an output of every token. A sigmoid head's logit would come out of 8-bit activations: 0.0008 more error.)

llama.cpp multiplies runs of different lengths with different kernels: rewards are close, not equal, in other pieces.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends import check_trim, chunks
from edge_prm.backends.gguf_file import HEAD_NAME, read_head
from edge_prm.backends.llama_engine import Watcher, engine_lines, gpu_layers_of, quieten, reason
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, MissingExtraError

MODEL_NAME = "model.gguf"
BATCH_TOKENS = 512
FIRST_CELLS = 2048
MOST_SEQUENCES = 64
_NO_CELLS = 1  # what llama_decode returns when the context is full

Floats = npt.NDArray[np.float32]


def load_model(bundle: Bundle, threads: int | None, device: str, gpu_layers: int | None) -> GgufModel:
    return GgufModel(bundle, threads, device, gpu_layers)


class GgufModel:
    """A GGUF file in llama.cpp. Runs one batch at a time; safe to be called from several threads."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, device: str = "auto", gpu_layers: int | None = None
    ) -> None:
        """`gpu_layers`: how many layers the GPU holds; all of them by default, where llama.cpp was built for one."""
        try:
            import llama_cpp
        except ImportError:
            raise MissingExtraError("gguf", ["llama-cpp-python"]) from None
        path = bundle.folder / MODEL_NAME
        self.layers = read_head(
            path,
            bundle.manifest.architecture,
            bundle.folder / HEAD_NAME if HEAD_NAME in bundle.manifest.files else None,
        )
        self._llama = llama_cpp
        self._threads = threads or os.cpu_count() or 1
        self._lock = threading.RLock()
        quieten()
        llama_cpp.llama_backend_init()
        self._watcher = Watcher(llama_cpp, bundle.manifest.architecture.hidden)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = layers = gpu_layers_of(
            llama_cpp, device, gpu_layers, bundle.manifest.architecture.layers
        )
        self._on_gpu = layers > 0
        with engine_lines() as lines:
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        if not self._model:
            version = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
            raise BackendError(f"{version} cannot load {path}: {reason(lines)}")
        self._cells = FIRST_CELLS
        self._context = self._make_context(self._cells)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._free = list(range(MOST_SEQUENCES))[::-1]
        self._given_back: deque[int] = deque()

    @property
    def cells(self) -> int:
        """Tokens that the KV cache has room for, those of all sequences together."""
        return self._cells

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
            self._tidy()
            if not self._free:
                raise BackendError(f"{MOST_SEQUENCES} sequences are open; close a session before another is started")
            return self._free.pop()

    def give_back(self, sequence: int) -> None:
        """Never touches the engine: the garbage collector may call it in the midst of a run."""
        self._given_back.append(sequence)

    def remove(self, sequence: int, start: int) -> None:
        """Forget a sequence from position `start` on; cells that others share stay."""
        with self._lock:
            self._tidy()
            self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""
        with self._lock:
            self._tidy()
            self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def run(self, sequence: int, ids: npt.NDArray[np.int64], offset: int, read_at: Sequence[int]) -> Floats:
        """Run one batch behind `offset` tokens of a sequence; rewards at `read_at`, float32 `[len(read_at)]`."""
        with self._lock:
            self._tidy()
            batch, wanted = self._batch, set(read_at)
            batch.n_tokens = len(ids)
            for index, id_ in enumerate(ids.tolist()):
                batch.token[index], batch.pos[index], batch.n_seq_id[index] = id_, offset + index, 1
                batch.seq_id[index][0], batch.logits[index] = sequence, index in wanted
            status = self._decode()
            while status == _NO_CELLS:
                self._grow()
                status = self._decode()
            if status != 0:
                self._llama.llama_memory_seq_rm(self._memory, sequence, offset, -1)
                raise BackendError(f"llama.cpp failed at token {offset} (llama_decode gave {status})")
            return self._rewards(self._watcher.rows(len(read_at)))

    def _decode(self) -> int:
        self._watcher.seen.clear()
        status: int = self._llama.llama_decode(self._context, self._batch)
        return status

    def _rewards(self, rows: Floats) -> Floats:
        """The head on hidden states `[rows, hidden]`: sigmoid of its one output, or softmax over two, class 1.

        Row by row, so that a reward's rounding does not depend on how many are read.
        """
        rewards = np.empty(len(rows), dtype=np.float32)
        for at, values in enumerate(rows):
            for index, (weight, bias) in enumerate(self.layers):
                values = weight @ (np.maximum(values, 0) if index else values) + bias
            logit = np.float64(values[0] if len(values) == 1 else values[1] - values[0])
            with np.errstate(over="ignore"):  # where exp is infinite, the outcome is the 0 that it should be
                rewards[at] = 1 / (1 + np.exp(-logit))
        return rewards

    @property
    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._context)

    def _make_context(self, cells: int) -> Any:
        llama = self._llama
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = cells, BATCH_TOKENS, BATCH_TOKENS
        options.n_seq_max, options.kv_unified = MOST_SEQUENCES, True
        options.n_threads = options.n_threads_batch = self._threads
        if not self._on_gpu:  # on a CPU it is slow for short runs behind a long text: pushes took twice as long
            options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.cb_eval = self._watcher.callback
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

    def _tidy(self) -> None:
        """Free the cells of sequences that were given back; BackendError when the model is closed."""
        if self._model is None:
            raise BackendError("the model is closed; load it again")
        while self._given_back:
            sequence = self._given_back.popleft()
            self._llama.llama_memory_seq_rm(self._memory, sequence, 0, -1)
            self._free.append(sequence)


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
        rewards = []
        for chunk, wanted in chunks(ids, read_at, BATCH_TOKENS):
            if self._sequence is None:
                self._sequence = self._model.take_sequence()
            rewards.append(self._model.run(self._sequence, chunk, self._offset, wanted.tolist()))
            self._offset += len(chunk)
            self._computed += len(chunk)
        return np.concatenate(rewards)

    def trim(self, to: int) -> None:
        check_trim(to, self._offset)
        if self._sequence is not None and to < self._offset:
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
