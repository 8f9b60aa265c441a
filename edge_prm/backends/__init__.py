"""Engines. Token ids go in, rewards at read positions come out; no text and no tokenizer below this line.

A new engine is one file with a `load_model(bundle, threads, device, gpu_layers)` that returns a Model, one line in
`MODULES`, and one row in the contract test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, InputError


class Backend(Protocol):
    """One token sequence and its KV cache. Not to be shared by threads; every thread starts its own."""

    @property
    def offset(self) -> int:
        """Tokens that the cache holds."""

    @property
    def computed(self) -> int:
        """Tokens run through the model since the start, those run a second time included."""

    def extend(self, ids: npt.NDArray[np.int64], read_at: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append `ids`, int64 `[tokens]`, and return the rewards at `read_at` (ascending indices into `ids`).

        Returns float32 `[len(read_at)]`, the same bits in whatever pieces a sequence is extended (llama.cpp: the same
        within the manifest's `stream_tolerance`). BackendError when the engine fails; the cache then holds what it
        held before, or a part of `ids` more. An exception that a signal raises in the main thread ends the run.
        """

    def trim(self, to: int) -> None:
        """Forget all but the first `to` tokens."""

    def branch(self) -> Backend:
        """Return a second sequence that begins with what this one holds."""

    def close(self) -> None:
        """Free the cache."""


class Model(Protocol):
    """Loaded weights, shared by any number of sequences and threads, of the process that loaded them.

    A model that nobody holds any more frees its weights.
    """

    spare: Callable[[], None] | None
    """Called when no other sequence can be started: whoever holds one that it does not need closes it. An engine
    without such a limit never calls it."""

    def start(self) -> Backend:
        """Return an empty sequence. BackendError in a forked child, or when the bundle was overwritten since."""

    def close(self) -> None:
        """Free the weights."""


MODULES = {
    "onnx": "edge_prm.backends.onnx.native",
    "gguf": "edge_prm.backends.gguf.model",
    "optimum": "edge_prm.backends.onnx.traced",
}
DEVICES = ("auto", "cpu", "gpu")


def load_model(bundle: Bundle, backend: str, threads: int | None, device: str, gpu_layers: int | None = None) -> Model:
    """Load a bundle's weights with the engine it was exported for; InputError for a backend that cannot read it."""
    made_for = bundle.manifest.backend
    if backend not in ("auto", *MODULES):
        raise InputError(f"backend {backend!r} is not known; choose auto or one of {', '.join(MODULES)}")
    if backend not in ("auto", made_for) or made_for not in MODULES:
        raise InputError(f"{bundle.folder} was exported for backend {made_for!r}; it cannot run on {backend!r}")
    if device not in DEVICES:
        raise InputError(f"device {device!r} is not one of {', '.join(DEVICES)}")
    threads, gpu_layers = _plain(threads), _plain(gpu_layers)
    if threads is not None and not _whole(threads, 1):
        raise InputError(
            f"threads is {threads!r}; give a whole number from 1 up, or None for one per core that this process may use"
        )
    if gpu_layers is not None and not _whole(gpu_layers, 0):
        raise InputError(f"gpu_layers is {gpu_layers!r}; give a whole number from 0 up, or None for all that fit")
    if made_for != "gguf" and (device == "gpu" or gpu_layers):
        raise InputError(
            f"{bundle.folder} is an ONNX bundle, and this version runs those on the CPU; for a GPU export with --gguf"
        )
    model: Model = importlib.import_module(MODULES[made_for]).load_model(bundle, threads, device, gpu_layers)
    return model


def chunks(
    ids: npt.NDArray[np.int64], read_at: Sequence[int], most: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Cut what is to be appended into runs of at most so many tokens, each with the positions to be read in it."""
    tokens, wanted = np.asarray(ids, dtype=np.int64), np.asarray(read_at, dtype=np.int64)
    if len(tokens) == 0:
        raise BackendError("there are no tokens to extend by")
    for start in range(0, len(tokens), most):
        chunk = tokens[start : start + most]
        yield chunk, wanted[(wanted >= start) & (wanted < start + len(chunk))] - start


def check_trim(to: int, held: int) -> None:
    """BackendError unless a cache of `held` tokens can be cut down to `to`."""
    if not 0 <= to <= held:
        raise BackendError(f"cannot trim to {to} tokens: the cache holds {held}")


def _plain(value: Any) -> Any:
    """A numpy integer as Python's own; anything else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
