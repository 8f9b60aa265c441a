"""llama.cpp's weights, its one context (the KV cache of all sequences), and the batch that runs in it.

Only read positions have outputs, and the hidden state after the final norm is copied on its way, by the engine's own
callback for observing a computation. (The API's embeddings would make an output of every token. A sigmoid head's logit
would come out of 8-bit activations: 0.0008 more error.)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edge_prm.arrays import Int64
from edge_prm.backends.gguf.llama_cpp import HiddenStateTap, Offload, StopFlag, capture_log, reason
from edge_prm.backends.gguf.options import set_context_options
from edge_prm.backends.guest import Guest, keep_after_fork
from edge_prm.errors import BackendError

BATCH_TOKENS = 512
CONTEXT_IS_FULL = 1
"""What `Context.decode` returns when there are not enough free cells."""
_CELL_STEP = 256


class Handles:
    """What llama.cpp allocated for a model: freed by `close`, or when nobody holds the model any more."""

    def __init__(self, llama: Any, tap: HiddenStateTap | None, guest: Guest) -> None:
        self.model = self.context = self.batch = None
        self._llama, self._tap, self._guest = llama, tap, guest  # a context calls the tap's callback
        keep_after_fork(self)

    def free(self) -> None:
        """Free everything. In a forked child nothing: the engine would wait for threads that are not there."""
        if not self._guest.at_home:
            return
        with capture_log():
            batch, self.batch = self.batch, None  # first, so that an interrupt here frees nothing twice
            if batch is not None:
                self._llama.llama_batch_free(batch)
            self.free_context()
            model, self.model = self.model, None
            if model is not None:
                self._llama.llama_model_free(model)

    def free_context(self) -> None:
        """Free the context alone."""
        context, self.context = self.context, None
        if context is not None:
            self._llama.llama_free(context)

    def abandon(self) -> None:
        """Called in a forked child; `free` already knows."""


class Context:
    """Loaded weights, and room for `cells` tokens of `sequences` sequences. Not thread-safe: GgufModel has the lock."""

    def __init__(
        self,
        llama: Any,
        tap: HiddenStateTap,
        handles: Handles,
        threads: int,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.cells = self.sequences = 0
        self.tap = tap
        self._llama = llama
        self._handles = handles
        self._threads = threads
        self._options = options  # fields of llama_context_params that the user sets
        self._on_gpu = False

    def open(self, path: Path, offload: Offload, cells: int, sequences: int) -> None:
        """Load the weights and make a context; BackendError with the engine's reason."""
        llama = self._llama
        options = llama.llama_model_default_params()
        offload.set(llama, options)
        self._on_gpu = offload.layers > 0
        with capture_log() as lines:
            llama.llama_backend_init()
            self._handles.model = llama.llama_model_load_from_file(os.fsencode(path), options)
        if not self._handles.model:
            version = f"llama.cpp (llama-cpp-python {llama.__version__})"
            raise BackendError(f"{version} cannot load {path}: {reason(lines)}")
        self._handles.batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._handles.context = self._make(cells, sequences)
        self.cells, self.sequences = cells, sequences

    @property
    def is_open(self) -> bool:
        """Whether there is a context to run in."""
        return self._handles.context is not None

    def set_batch(self, sequence: int, ids: Int64, offset: int, read_at: Sequence[int]) -> None:
        """Make `ids` `[tokens]`, after `offset` tokens of a sequence, what `decode` runs."""
        batch: Any = self._handles.batch
        read = set(read_at)
        batch.n_tokens = len(ids)
        for index, id_ in enumerate(ids.tolist()):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = id_, offset + index, 1
            batch.seq_id[index][0], batch.logits[index] = sequence, index in read

    def decode(self, stop: StopFlag) -> int:
        """Run the batch; returns 0, CONTEXT_IS_FULL, or another status of llama_decode."""
        self.tap.begin(stop)
        with capture_log():
            stop.watch(self._llama, self._handles.context)
            status: int = self._llama.llama_decode(self._handles.context, self._handles.batch)
        return status

    def remove(self, sequence: int, start: int) -> None:
        """Forget a sequence from position `start` on; cells that others share stay."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share all cells of `source`."""
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def resize(self, cells: int, sequences: int | None = None) -> None:
        """Another number of cells, or of sequences; what the context holds moves over, shared cells stay shared.

        Two contexts are never held: the old one is copied (only its cells in use) and freed before the new one is made.
        BackendError when there is no memory for the new one; what was held is then held as before.
        """
        llama, handles = self._llama, self._handles
        state = np.empty(llama.llama_state_get_size(handles.context), dtype=np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_get_data(handles.context, pointer, len(state))
        with capture_log():
            handles.free_context()
        try:
            handles.context = self._make(cells, sequences or self.sequences)
            self.cells, self.sequences = cells, sequences or self.sequences
        except BackendError:
            handles.context = self._make(self.cells, self.sequences)
            llama.llama_state_set_data(handles.context, pointer, written)
            raise
        if llama.llama_state_set_data(handles.context, pointer, written) != written:
            handles.free()
            raise BackendError(f"llama.cpp could not move its cached tokens to {cells} cells; load the bundle again")

    @property
    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._handles.context)

    def _make(self, cells: int, sequences: int) -> Any:
        llama = self._llama
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = cells, BATCH_TOKENS, BATCH_TOKENS
        options.n_seq_max, options.kv_unified = sequences, True
        options.n_threads = options.n_threads_batch = self._threads
        if not self._on_gpu:  # on a CPU it is slow for short runs after a long text: pushes took twice as long
            options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.cb_eval = self.tap.callback
        set_context_options(options, self._options)
        with capture_log():
            context = llama.llama_init_from_model(self._handles.model, options)
        if not context:
            raise BackendError(f"llama.cpp has no memory for a cache of {cells} tokens; open fewer or shorter sessions")
        return context


def round_up(cells: int) -> int:
    """The next multiple of what llama.cpp allocates cells in."""
    return -(-cells // _CELL_STEP) * _CELL_STEP
