"""llama.cpp, through llama-cpp-python's low-level API.

One context holds the cells of all sequences of a model, so a branch shares the cells of its beginning instead of
copying them; when they run out, the context is made larger and takes over what it held. When little is held in a large
one, it is made small again. The reward head is applied here, in fp32, to the hidden states of the read positions.

llama.cpp multiplies runs of different lengths with different kernels: rewards in other pieces are close, not equal.

A change of the context is never torn by an interrupt: it runs to its end first (`Guest.finish`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edge_prm.arrays import Float32, Int64
from edge_prm.backends import EngineOptions, check_trim, chunks
from edge_prm.backends.gguf.checks import read_head
from edge_prm.backends.gguf.context import BATCH_TOKENS, CONTEXT_IS_FULL, Context, Handles
from edge_prm.backends.gguf.head_file import HEAD_NAME
from edge_prm.backends.gguf.llama_cpp import HiddenStateTap, StopFlag, offload_of
from edge_prm.backends.gguf.options import set_context_options
from edge_prm.backends.gguf.sequences import Sequences, max_sequences
from edge_prm.backends.guest import Guest, Result, WeightFiles
from edge_prm.bundle import Bundle
from edge_prm.cores import usable_cores
from edge_prm.errors import BackendError, BundleIntegrityError, MissingExtraError
from edge_prm.head import Head

MODEL_NAME = "model.gguf"


def load_model(bundle: Bundle, options: EngineOptions) -> GgufModel:
    """Load a GGUF bundle; see GgufModel."""
    return GgufModel(bundle, options.threads, options.device, options.gpu_layers, options.options)


class GgufModel:
    """A GGUF file in llama.cpp. Runs one batch at a time; safe to be called from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        device: str = "auto",
        gpu_layers: int | None = None,
        context_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`gpu_layers`: how many layers the GPU holds; all of them by default, where llama.cpp was built for one.
        `device`: `cuda:1` places them on that card alone. `context_options`: fields of llama_context_params by name.

        MissingExtraError without llama-cpp-python, BundleIntegrityError for a file that is not the manifest's model,
        InputError for a GPU that is not there or an option that llama.cpp does not have, BackendError when llama.cpp
        cannot load the file.
        """
        try:
            import llama_cpp
        except ImportError:
            raise MissingExtraError("gguf", ["llama-cpp-python"]) from None
        set_context_options(llama_cpp.llama_context_default_params(), context_options)  # refused before the load
        path, architecture = bundle.folder / MODEL_NAME, bundle.manifest.architecture
        self.spare: Callable[[], None] | None = None
        self.batches = None
        self._files = WeightFiles([path])
        self.head = _read_head(bundle, path)
        offload = offload_of(llama_cpp, device, gpu_layers, architecture.layers)
        self.device = offload.device
        self._lock = threading.RLock()
        self._guest = Guest()
        tap = HiddenStateTap(llama_cpp, architecture.hidden)
        self._handles = Handles(llama_cpp, tap, self._guest)
        weakref.finalize(self, self._handles.free).atexit = False  # at exit other threads may still compute
        self._context = Context(llama_cpp, tap, self._handles, threads or usable_cores(), context_options)
        self._sequences = Sequences(self._context, max_sequences(llama_cpp))
        try:
            self._change(lambda: self._sequences.open(path, offload))
        except BaseException:
            self._change(self._handles.free)
            raise

    @property
    def cells(self) -> int:
        """Tokens that the KV cache has room for, those of all sequences together."""
        return self._context.cells

    def start(self) -> GgufBackend:
        """An empty sequence; BackendError in a forked child, or when the file was overwritten since."""
        self._guest.check()
        self._files.check()
        return GgufBackend(self)

    def close(self) -> None:
        """Free weights and cells; waits for a run of another thread."""
        if self._guest.at_home:  # in a fork the lock may be held by a thread that is not in this process
            self._change(self._handles.free)
            self._guest.close()

    def acquire_sequence(self, holder: GgufBackend) -> None:
        """Give `holder` a free sequence; BackendError when as many as possible are in use.

        The holder gets it within the change, so that an interrupt after it loses no sequence.
        """

        def acquire(*, grow: bool) -> bool:
            self._sequences.reap()
            holder.sequence = self._sequences.acquire()
            if holder.sequence is None and grow and self._sequences.add():
                holder.sequence = self._sequences.acquire()
            return holder.sequence is not None

        acquired = self._change(lambda: acquire(grow=self.spare is None))
        if not acquired and self.spare is not None:
            self.spare()  # without the lock: it may close other sequences
            acquired = self._change(lambda: acquire(grow=True))
        if not acquired:
            raise BackendError(f"{self._sequences.limit} sequences are open; close a session before another is started")

    def release_sequence(self, sequence: int) -> None:
        """Give a sequence back. Only enqueues it: safe in a finalizer, in any thread, during a run."""
        self._sequences.release(sequence)

    def reap(self) -> None:
        """Free released sequences now, unless a run has the engine: the next call then does it."""

        def reap() -> None:
            if self._lock.acquire(blocking=False):
                try:
                    if self._context.is_open:
                        self._sequences.reap()
                finally:
                    self._lock.release()

        if self._guest.at_home:
            self._guest.finish(reap)

    def remove(self, sequence: int, start: int) -> None:
        """Forget a sequence from position `start` on; cells that others share stay."""

        def remove() -> None:
            self._sequences.reap()
            self._sequences.remove(sequence, start)

        self._change(remove)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""

        def copy() -> None:
            self._sequences.reap()
            self._sequences.copy(source, target)

        self._change(copy)

    def run(self, sequence: int, ids: Int64, offset: int, read_at: Sequence[int], ahead: int = 0) -> Float32:
        """Run one batch after `offset` tokens of a sequence; rewards at `read_at`, float32 `[len(read_at)]`.

        `ahead`: tokens that will follow this batch, so that the context grows once for all of them.
        """
        stop = StopFlag()

        def call() -> Float32:
            with self._lock:
                return self._run(sequence, ids, offset, read_at, ahead, stop)

        return self._guest.run(call, stop.set)

    def _run(
        self, sequence: int, ids: Int64, offset: int, read_at: Sequence[int], ahead: int, stop: StopFlag
    ) -> Float32:
        context, sequences = self._context, self._sequences
        self._files.check()
        sequences.reap(len(ids) + ahead)
        if sequences.held(sequence) > offset:  # of a run or a trim that was interrupted
            sequences.remove(sequence, offset)
        sequences.hold(sequence, offset + len(ids))
        context.set_batch(sequence, ids, offset, read_at)
        status = context.decode(stop)
        while status == CONTEXT_IS_FULL:
            sequences.grow(len(ids) + ahead)
            status = context.decode(stop)
        if status != 0 or context.tap.error is not None:
            sequences.remove(sequence, offset)
        if context.tap.error is not None:
            raise context.tap.error
        if status != 0:
            raise BackendError(f"llama.cpp failed at token {offset} (llama_decode gave {status})")
        self._files.check()
        return self.head.apply(context.tap.rows(len(read_at)))

    def _change(self, call: Callable[[], Result]) -> Result:
        """Change the context: with the lock, and to its end."""
        return self._guest.finish(call, self._lock)


def _read_head(bundle: Bundle, path: Path) -> Head:
    """The reward head of a bundle, from its GGUF file or from HEAD_NAME; BundleIntegrityError when it is not one."""
    described, external = bundle.manifest.head, bundle.folder / HEAD_NAME
    layers = read_head(path, bundle.manifest.architecture, external if HEAD_NAME in bundle.manifest.files else None)
    try:
        return Head(described.kind, layers, described.tokens, described.default_aggregate)
    except ValueError as error:
        raise BundleIntegrityError(path, f"not the head that the manifest describes ({error})") from None


class GgufBackend:
    """One sequence of a GgufModel; see `edge_prm.backends.Backend` for the contract.

    `sequence`: its number in the context; None until the first `extend`, and after `close`.
    """

    def __init__(self, model: GgufModel) -> None:
        self.sequence: int | None = None
        self._model = model
        self._offset = 0
        self._computed = 0

    @property
    def offset(self) -> int:
        """Tokens that the cache holds."""
        return self._offset

    @property
    def computed(self) -> int:
        """Tokens run through the model since the start, those run a second time included."""
        return self._computed

    def extend(self, ids: Int64, read_at: Sequence[int]) -> Float32:
        """Append `ids`, int64 `[tokens]`, and return the rewards at `read_at`, float32 `[len(read_at)]`."""
        rewards = []
        ahead = len(ids)
        for chunk, read in chunks(ids, read_at, BATCH_TOKENS):
            if self.sequence is None:
                self._model.acquire_sequence(self)
            assert self.sequence is not None
            ahead -= len(chunk)
            rewards.append(self._model.run(self.sequence, chunk, self._offset, read.tolist(), ahead))
            self._offset += len(chunk)
            self._computed += len(chunk)
        return np.concatenate(rewards)

    def trim(self, to: int) -> None:
        """Forget all but the first `to` tokens; BackendError when the cache holds fewer."""
        check_trim(to, self._offset)
        before, self._offset = self._offset, to  # first: a run removes what lies after its offset
        if self.sequence is not None and to < before:
            self._model.remove(self.sequence, to)

    def branch(self) -> GgufBackend:
        """A second sequence that shares the cells of this one."""
        other = GgufBackend(self._model)
        if self.sequence is not None:
            self._model.acquire_sequence(other)
            assert other.sequence is not None
            self._model.copy(self.sequence, other.sequence)
            other._offset = self._offset
        return other

    def close(self) -> None:
        """Give the sequence back, and free its cells unless the engine is running."""
        self._release()
        self._model.reap()

    def _release(self) -> None:
        self._offset = 0
        if self.sequence is not None:
            sequence, self.sequence = self.sequence, None
            self._model.release_sequence(sequence)

    def __del__(self) -> None:
        if getattr(self, "sequence", None) is not None:
            self._release()
