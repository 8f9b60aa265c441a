"""llama.cpp, through llama-cpp-python's low-level API.

One context holds the cells of all sequences of a model, so a branch shares the cells of its beginning instead of
copying them; when they run out, the context is made larger and takes over what it held. When little is left in a
large one, it is made small again.

Only read positions have outputs, and of those the hidden state behind the final norm is taken on its way, by the
engine's own callback for watching a computation: the reward head is then applied here in fp32. (The API's embeddings
would make an output of every token. A sigmoid head's logit would come out of 8-bit activations: 0.0008 more error.)

llama.cpp multiplies runs of different lengths with different kernels: rewards are close, not equal, in other pieces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends import check_trim, chunks
from edge_prm.backends.gguf.checks import HEAD_NAME, read_head
from edge_prm.backends.gguf.llama_cpp import StopFlag, Watcher, engine_lines, gpu_layers_of, reason
from edge_prm.backends.guest import Guest, WeightFiles, keep_after_fork
from edge_prm.bundle import Bundle
from edge_prm.cores import usable_cores
from edge_prm.errors import BackendError, BundleIntegrityError, MissingExtraError
from edge_prm.head import Head

MODEL_NAME = "model.gguf"
BATCH_TOKENS = 512
FIRST_CELLS = 2048  # never less than a batch: llama.cpp ends the process for a batch that is larger than its context
CELL_STEP = 256
FIRST_SEQUENCES = 64  # each takes a row of logits over the vocabulary: 256 would take 150 MB with Qwen's
MOST_SEQUENCES = 256
_NO_CELLS = 1  # what llama_decode returns when the context is full

Floats = npt.NDArray[np.float32]


def load_model(bundle: Bundle, threads: int | None, device: str, gpu_layers: int | None) -> GgufModel:
    return GgufModel(bundle, threads, device, gpu_layers)


class _Handles:
    """What llama.cpp allocated for a model: freed by `close`, or when nobody holds the model any more."""

    def __init__(self, llama: Any, watcher: Watcher, guest: Guest) -> None:
        self.model = self.context = self.batch = None
        self._llama, self._watcher, self._guest = llama, watcher, guest  # a context calls the watcher's callbacks
        keep_after_fork(self)

    def free(self) -> None:
        """Free all of it. In a forked child nothing: the engine would wait for threads that are not there."""
        if not self._guest.at_home:
            return
        with engine_lines():
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
        self.spare: Callable[[], None] | None = None
        self._files = WeightFiles([path])
        self.head = _read_head(bundle, path)
        self._llama = llama_cpp
        self._threads = threads or usable_cores()
        self._lock = threading.RLock()
        self._guest = Guest()
        self._watcher = Watcher(llama_cpp, bundle.manifest.architecture.hidden)
        self._handles = _Handles(llama_cpp, self._watcher, self._guest)
        weakref.finalize(self, self._handles.free).atexit = False  # at exit other threads may still compute
        self._cells = FIRST_CELLS
        self._most = most_sequences(llama_cpp)
        self._sequences = min(FIRST_SEQUENCES, self._most)
        self._free = list(range(self._sequences))[::-1]
        self._given_back: deque[int] = deque()
        self._held: dict[int, int] = {}
        """Sequence -> tokens that it has in the context, or may have after a run that was interrupted."""
        try:
            self._open(path, gpu_layers_of(llama_cpp, device, gpu_layers, bundle.manifest.architecture.layers))
        except BaseException:
            self._handles.free()
            raise

    def _open(self, path: Path, gpu_layers: int) -> None:
        """Load the weights and make a small context; BackendError with the engine's reason."""
        llama = self._llama
        options = llama.llama_model_default_params()
        options.n_gpu_layers = gpu_layers
        self.on_gpu = gpu_layers > 0
        with engine_lines() as lines:
            llama.llama_backend_init()
            self._handles.model = llama.llama_model_load_from_file(os.fsencode(path), options)
        if not self._handles.model:
            version = f"llama.cpp (llama-cpp-python {llama.__version__})"
            raise BackendError(f"{version} cannot load {path}: {reason(lines)}")
        self._handles.batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._handles.context = self._make_context(self._cells, self._sequences)

    @property
    def cells(self) -> int:
        """Tokens that the KV cache has room for, those of all sequences together."""
        return self._cells

    def start(self) -> GgufBackend:
        self._guest.check()
        self._files.check()
        return GgufBackend(self)

    def close(self) -> None:
        if not self._guest.at_home:  # the lock may be held by a thread that is not in this process
            return
        with self._lock:
            self._handles.free()
        self._guest.close()

    def take_sequence(self) -> int:
        """Return the number of a sequence that is free; BackendError when as many as possible are open."""
        self._guest.check()
        with self._lock:
            self._tidy()
            if not self._free and self.spare is not None:
                self.spare()
                self._tidy()
            if not self._free and self._sequences < self._most:
                self._add_sequences()
            if not self._free:
                raise BackendError(f"{self._most} sequences are open; close a session before another is started")
            return self._free.pop()

    def give_back(self, sequence: int) -> None:
        """Never touches the engine: the garbage collector may call it in the midst of a run."""
        self._given_back.append(sequence)

    def tidy(self) -> None:
        """Free what was given back now, unless a run has the engine: the next call then does it."""
        if self._guest.at_home and self._lock.acquire(blocking=False):
            try:
                if self._handles.context is not None:
                    self._tidy()
            finally:
                self._lock.release()

    def remove(self, sequence: int, start: int) -> None:
        """Forget a sequence from position `start` on; cells that others share stay."""
        self._guest.check()
        with self._lock:
            self._tidy()
            self._remove(sequence, start)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""
        self._guest.check()
        with self._lock:
            self._tidy()
            self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._held[target] = self._held.get(source, 0)

    def run(
        self, sequence: int, ids: npt.NDArray[np.int64], offset: int, read_at: Sequence[int], ahead: int = 0
    ) -> Floats:
        """Run one batch behind `offset` tokens of a sequence; rewards at `read_at`, float32 `[len(read_at)]`.

        `ahead`: tokens that will follow this batch, so that the context grows once for all of them.
        """
        stop = StopFlag()

        def call() -> Floats:
            with self._lock:
                return self._run(sequence, ids, offset, read_at, ahead, stop)

        return self._guest.run(call, stop.set)

    def _run(
        self,
        sequence: int,
        ids: npt.NDArray[np.int64],
        offset: int,
        read_at: Sequence[int],
        ahead: int,
        stop: StopFlag,
    ) -> Floats:
        self._files.check()
        self._tidy(len(ids) + ahead)
        if self._held.get(sequence, 0) > offset:  # of a run that was interrupted
            self._remove(sequence, offset)
        self._held[sequence] = offset + len(ids)
        self._fill_batch(sequence, ids, offset, set(read_at))
        with engine_lines():
            status = self._decode(stop)
            while status == _NO_CELLS:
                self._resize(max(2 * self._cells, _round_up(self._cells + len(ids) + ahead)))
                status = self._decode(stop)
        if status != 0 or self._watcher.error is not None:
            self._remove(sequence, offset)
        if self._watcher.error is not None:
            raise self._watcher.error
        if status != 0:
            raise BackendError(f"llama.cpp failed at token {offset} (llama_decode gave {status})")
        self._files.check()
        return self.head.apply(self._watcher.rows(len(read_at)))

    def _fill_batch(self, sequence: int, ids: npt.NDArray[np.int64], offset: int, wanted: set[int]) -> None:
        batch: Any = self._handles.batch
        batch.n_tokens = len(ids)
        for index, id_ in enumerate(ids.tolist()):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = id_, offset + index, 1
            batch.seq_id[index][0], batch.logits[index] = sequence, index in wanted

    def _decode(self, stop: StopFlag) -> int:
        self._watcher.begin(stop)
        stop.watch(self._llama, self._handles.context)
        status: int = self._llama.llama_decode(self._handles.context, self._handles.batch)
        return status

    @property
    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._handles.context)

    def _make_context(self, cells: int, sequences: int) -> Any:
        llama = self._llama
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = cells, BATCH_TOKENS, BATCH_TOKENS
        options.n_seq_max, options.kv_unified = sequences, True
        options.n_threads = options.n_threads_batch = self._threads
        if not self.on_gpu:  # on a CPU it is slow for short runs behind a long text: pushes took twice as long
            options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.cb_eval = self._watcher.callback
        with engine_lines():
            context = llama.llama_init_from_model(self._handles.model, options)
        if not context:
            raise BackendError(f"llama.cpp has no memory for a cache of {cells} tokens; open fewer or shorter sessions")
        return context

    def _resize(self, cells: int, sequences: int | None = None) -> None:
        """Another number of cells, or of sequences; what the context holds moves over, shared cells stay shared.

        Never are two contexts held: the old one is copied (its cells in use, no more) and freed before the new one is
        made. BackendError when there is no memory for the new one; what was held is then held as before.
        """
        llama, handles = self._llama, self._handles
        state = np.empty(llama.llama_state_get_size(handles.context), dtype=np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_get_data(handles.context, pointer, len(state))
        with engine_lines():
            handles.free_context()
        try:
            handles.context = self._make_context(cells, sequences or self._sequences)
            self._cells, self._sequences = cells, sequences or self._sequences
        except BackendError:
            handles.context = self._make_context(self._cells, self._sequences)
            llama.llama_state_set_data(handles.context, pointer, written)
            raise
        if llama.llama_state_set_data(handles.context, pointer, written) != written:
            handles.free()
            raise BackendError(f"llama.cpp could not move its cached tokens to {cells} cells; load the bundle again")

    def _add_sequences(self) -> None:
        """Make room for twice as many sequences; BackendError when there is no memory for them."""
        before, after = self._sequences, min(2 * self._sequences, self._most)
        self._resize(self._cells, after)
        self._free += list(range(before, after))[::-1]

    def _remove(self, sequence: int, start: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1)
        self._held[sequence] = start

    def _tidy(self, coming: int = 0) -> None:
        """Free the cells of sequences that were given back, and a context that is much larger than what is held.

        `coming`: tokens that are about to be added. BackendError when the model is closed.
        """
        if self._handles.context is None:
            raise BackendError("the model is closed; load it again")
        while self._given_back:
            sequence = self._given_back.popleft()
            self._remove(sequence, 0)
            self._free.append(sequence)
        needed = 2 * (sum(self._held.values()) + coming)  # cells that branches share are counted more than once
        if self._cells > FIRST_CELLS and 2 * needed <= self._cells:
            with contextlib.suppress(BackendError):  # then it stays as large as it is
                self._resize(max(FIRST_CELLS, _round_up(needed)))


def _read_head(bundle: Bundle, path: Path) -> Head:
    """The reward head of a bundle, from its GGUF file or from HEAD_NAME; BundleIntegrityError when it is not one."""
    described, external = bundle.manifest.head, bundle.folder / HEAD_NAME
    layers = read_head(path, bundle.manifest.architecture, external if HEAD_NAME in bundle.manifest.files else None)
    try:
        return Head(described.kind, layers, described.tokens, described.default_aggregate)
    except ValueError as error:
        raise BundleIntegrityError(path, f"not the head that the manifest describes ({error})") from None


def most_sequences(llama_cpp: Any) -> int:
    """How many sequences a context may hold with this version of llama.cpp."""
    limit = getattr(llama_cpp, "llama_max_parallel_sequences", lambda: 64)
    return min(MOST_SEQUENCES, int(limit()))


def _round_up(cells: int) -> int:
    """The next multiple of what llama.cpp allocates cells in."""
    return -(-cells // CELL_STEP) * CELL_STEP


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
        ahead = len(ids)
        for chunk, wanted in chunks(ids, read_at, BATCH_TOKENS):
            if self._sequence is None:
                self._sequence = self._model.take_sequence()
            ahead -= len(chunk)
            rewards.append(self._model.run(self._sequence, chunk, self._offset, wanted.tolist(), ahead))
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
        self._release()
        self._model.tidy()

    def _release(self) -> None:
        self._offset = 0
        if self._sequence is not None:
            sequence, self._sequence = self._sequence, None
            self._model.give_back(sequence)

    def __del__(self) -> None:
        if getattr(self, "_sequence", None) is not None:
            self._release()
