"""What llama.cpp is asked beside running a model: to be quiet, to show hidden states, to use a GPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.errors import BackendError, InputError

Floats = npt.NDArray[np.float32]

_HIDDEN_STATE = b"result_norm"  # llama.cpp's name for the final norm's output, in every model of this family


class Watcher:
    """Copies the hidden states of read positions while llama.cpp computes."""

    def __init__(self, llama_cpp: Any, hidden: int) -> None:
        self.seen: list[Floats] = []
        self._hidden = hidden
        ggml = _ggml()
        self._name, self._count, self._copy = ggml.ggml_get_name, ggml.ggml_nelements, ggml.ggml_backend_tensor_get
        self._name.argtypes, self._name.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._count.argtypes, self._count.restype = [ctypes.c_void_p], ctypes.c_int64
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._copy.restype = None
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._watch)

    def rows(self, count: int) -> Floats:
        """The hidden states of the last run, float32 `[count, hidden]`; BackendError when the engine showed others."""
        rows = np.concatenate([np.empty((0, self._hidden), dtype=np.float32), *self.seen])
        if len(rows) != count:
            raise BackendError(f"llama.cpp showed {len(rows)} hidden states instead of {count}; use another version")
        return rows

    def _watch(self, tensor: int, ask: bool, data: object) -> bool:
        """Asked which tensors are of interest, and then shown them; True lets the computation go on."""
        if self._name(tensor) != _HIDDEN_STATE:
            return not ask
        if not ask:
            values = np.empty(self._count(tensor), dtype=np.float32)
            self._copy(tensor, values.ctypes.data, 0, values.nbytes)
            self.seen.append(values.reshape(-1, self._hidden))
        return True


@contextmanager
def engine_lines() -> Iterator[list[str]]:
    """Collect what the engine says, for an error message; at any other time nobody listens, so that stderr is quiet."""
    quieten()
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners.remove(lines)


_listeners: list[list[str]] = []
_kept: list[Any] = []  # the engine keeps its callback for good, so it must never be freed


def quieten() -> None:
    """The engine's own lines on stderr help nobody: errors come back as values."""
    import llama_cpp

    def hear(level: int, text: bytes, data: object) -> None:
        for lines in _listeners:
            lines.append(text.decode("utf-8", errors="replace").strip())

    if not _kept:
        _kept.append(llama_cpp.llama_log_callback(hear))
    llama_cpp.llama_log_set(_kept[0], ctypes.c_void_p(0))


def reason(lines: list[str]) -> str:
    """The last line that tells of a failure."""
    return next((line for line in reversed(lines) if "fail" in line or "error" in line), "the engine gave no reason")


def _ggml() -> Any:
    """The library beneath llama.cpp; BackendError when this build hides it."""
    from llama_cpp import llama_cpp as low

    def libraries() -> Any:
        yield getattr(low, "_lib", None)
        from llama_cpp import _ggml

        yield _ggml.libggml
        for path in sorted((os.path.dirname(low.__file__), "lib", name) for name in ("ggml-base.dll",)):
            yield ctypes.CDLL(os.path.join(*path))

    for library in libraries():
        if library is not None and hasattr(library, "ggml_backend_tensor_get"):
            return library
    raise BackendError("this build of llama-cpp-python hides ggml, which hidden states are read with")


def gpu_layers_of(llama_cpp: Any, device: str, wanted: int | None, layers: int) -> int:
    """Layers for the GPU; InputError when one is asked for that is not there."""
    if device == "cpu":
        if wanted:
            raise InputError(f"gpu_layers is {wanted} and device is 'cpu'; choose one of them")
        return 0
    offloads = bool(llama_cpp.llama_supports_gpu_offload())
    if not offloads and (device == "gpu" or wanted):
        raise InputError(
            "this build of llama-cpp-python runs on the CPU only; install one built for your GPU "
            '(CMAKE_ARGS="-DGGML_CUDA=on", "-DGGML_METAL=on" or "-DGGML_VULKAN=on"), or leave the device out'
        )
    if not offloads:
        return 0
    return layers + 1 if wanted is None else wanted
