"""Parts of llama.cpp's interface around a run: its log, hidden states, stopping a run, and GPU layers."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from edge_prm.arrays import Float32
from edge_prm.backends.guest import log_fallback
from edge_prm.backends.options import device_of
from edge_prm.errors import BackendError, InputError

_HIDDEN_STATE = b"result_norm"  # llama.cpp's name for the final norm's output, in every model of this family


class HiddenStateTap:
    """Copies the hidden states of read positions while llama.cpp computes.

    `captured`: those of the current run, each float32 `[rows, hidden]`. `error`: what a callback raised: an exception
    cannot pass through the engine, and ctypes only prints it. `stop`: kept alive for the run.
    """

    def __init__(self, llama_cpp: Any, hidden: int) -> None:
        self.captured: list[Float32] = []
        self.error: BaseException | None = None
        self.stop: StopFlag | None = None
        self._hidden = hidden
        ggml = _ggml()
        self._name, self._count, self._copy = ggml.ggml_get_name, ggml.ggml_nelements, ggml.ggml_backend_tensor_get
        self._name.argtypes, self._name.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._count.argtypes, self._count.restype = [ctypes.c_void_p], ctypes.c_int64
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._copy.restype = None
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._capture)

    def begin(self, stop: StopFlag) -> None:
        """Forget the last run; `stop` belongs to the next one."""
        self.captured.clear()
        self.error, self.stop = None, stop

    def rows(self, count: int) -> Float32:
        """The hidden states of the last run, float32 `[count, hidden]`; BackendError when there are not `count`."""
        rows = np.concatenate([np.empty((0, self._hidden), dtype=np.float32), *self.captured])
        if len(rows) != count:
            raise BackendError(f"llama.cpp returned {len(rows)} hidden states instead of {count}; use another version")
        return rows

    def _capture(self, tensor: int, ask: bool, data: object) -> bool:
        """Called to ask for the tensors of interest, then with their values; True continues the computation."""
        try:
            if self._name(tensor) != _HIDDEN_STATE:
                return not ask
            if not ask:
                values = np.empty(self._count(tensor), dtype=np.float32)
                self._copy(tensor, values.ctypes.data, 0, values.nbytes)
                self.captured.append(values.reshape(-1, self._hidden))
        except BaseException as error:
            self.error = error
            return False
        return True


class StopFlag:
    """Makes llama.cpp end a run at its next operator, on CPUs.

    The engine calls a function at every operator. A Python function would wait for Python's lock each time, so it is
    a C function: `strlen` of the flag, which is 0 until it is set.
    """

    def __init__(self) -> None:
        self._flag = ctypes.create_string_buffer(2)

    def set(self) -> None:
        """End the run; one that has not begun ends at its first operator."""
        self._flag[0] = b"\1"

    def watch(self, llama_cpp: Any, context: Any) -> None:
        """Make the next run of a context look at this flag, which must live as long as the run."""
        llama_cpp.llama_set_abort_callback(context, _is_set(llama_cpp), ctypes.addressof(self._flag))


def _is_set(llama_cpp: Any) -> Any:
    library = ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)
    return ctypes.cast(library.strlen, llama_cpp.ggml_abort_callback)


LOG_VARIABLE = "EDGE_PRM_LLAMA_LOG"
"""Environment variable: any value other than "" or "0" leaves llama.cpp's log as it is."""


class _LogCapture:
    """Replaces llama.cpp's log function while an engine works for us, and restores the previous one after that.

    llama.cpp has one log function for a process, and the process may hold models of somebody else.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may free a model during `enter` or `leave`
        self._depth = 0
        self._buffers: list[list[str]] = []
        self._callback: Any = None  # the engine may still call it in another thread, so it is never freed
        self._previous: tuple[Any, Any] | None = None

    def enter(self, lines: list[str]) -> None:
        import llama_cpp

        with self._lock:
            self._buffers.append(lines)
            self._depth += 1
            if self._depth > 1:
                return
            if self._callback is None:
                self._callback = llama_cpp.llama_log_callback(self._append)
            if self._previous is None and hasattr(llama_cpp, "llama_log_get"):
                previous, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
                llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(data))
                self._previous = previous, data
            llama_cpp.llama_log_set(self._callback, ctypes.c_void_p())

    def leave(self, lines: list[str]) -> None:
        import llama_cpp

        with self._lock:
            self._buffers = [others for others in self._buffers if others is not lines]
            self._depth -= 1
            if self._depth == 0 and self._previous is not None:
                llama_cpp.llama_log_set(*self._previous)
                self._previous = None

    def _append(self, level: int, text: bytes, data: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        for lines in list(self._buffers):
            lines.append(line)
            del lines[:-_MAX_LINES]


_MAX_LINES = 200
_log = _LogCapture()


@contextmanager
def capture_log() -> Iterator[list[str]]:
    """Collect the engine's log lines, for an error message, instead of having them on stderr."""
    lines: list[str] = []
    if os.environ.get(LOG_VARIABLE, "0") not in ("", "0"):
        yield lines
        return
    _log.enter(lines)
    try:
        yield lines
    finally:
        _log.leave(lines)


def silence_log() -> None:
    """Silence llama.cpp's log for the rest of this process: for processes of our own."""
    _log.enter([])


def reason(lines: list[str]) -> str:
    """The last line of a log that reports a failure."""
    words = ("fail", "error", "invalid value")  # the last one: of a card that is not there
    return next((line for line in reversed(lines) if any(word in line for word in words)), "the engine gave no reason")


def _ggml() -> Any:
    """The library under llama.cpp; BackendError when this build hides it."""
    from llama_cpp import llama_cpp as low

    def libraries() -> Iterator[Any]:
        yield getattr(low, "_lib", None)
        from llama_cpp import _ggml

        yield _ggml.libggml
        yield ctypes.CDLL(os.path.join(os.path.dirname(low.__file__), "lib", "ggml-base.dll"))  # on Windows

    for library in libraries():
        if library is not None and hasattr(library, "ggml_backend_tensor_get"):
            return library
    raise BackendError("this build of llama-cpp-python hides ggml, which hidden states are read with")


class Offload(NamedTuple):
    """What a GPU does: the number of layers that it holds, the output counted, and the number of the card; None for all
    cards, as llama.cpp divides the layers among them."""

    layers: int = 0
    card: int | None = None

    @property
    def device(self) -> str:
        """The device in a word: `cpu`, `gpu`, or `cuda:1` for a card."""
        if not self.layers:
            return "cpu"
        return "gpu" if self.card is None else f"cuda:{self.card}"

    def set(self, llama_cpp: Any, options: Any) -> None:
        """Set it in a llama_model_params."""
        options.n_gpu_layers = self.layers
        if self.layers and self.card is not None:
            options.split_mode, options.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, self.card


def offload_of(llama_cpp: Any, device: str, gpu_layers: int | None, n_layers: int) -> Offload:
    """What the GPU does of a model with `n_layers` layers; raises as `gpu_layers_of` does."""
    return Offload(gpu_layers_of(llama_cpp, device, gpu_layers, n_layers), device_of(device)[1])


def gpu_layers_of(llama_cpp: Any, device: str, gpu_layers: int | None, n_layers: int) -> int:
    """How many of `n_layers` layers (plus the output) the GPU holds. `cuda` and `gpu` are the same: llama.cpp has one
    kind of GPU, the one that it was built for.

    InputError for a GPU that is not there, or when `device` and `gpu_layers` contradict each other.
    """
    asked = device not in ("auto", "cpu")
    if device == "cpu" and gpu_layers:
        raise InputError(f"gpu_layers is {gpu_layers} and device is 'cpu'; choose one of them")
    if asked and gpu_layers == 0:
        raise InputError(
            f"gpu_layers is 0 and device is {device!r}; give the GPU at least one layer, or choose device 'cpu'"
        )
    if device == "cpu" or gpu_layers == 0:
        return 0
    if llama_cpp.llama_supports_gpu_offload():
        return n_layers + 1 if gpu_layers is None else gpu_layers
    if asked or gpu_layers:
        raise InputError(
            "this build of llama-cpp-python runs on the CPU only; install one built for your GPU "
            '(CMAKE_ARGS="-DGGML_CUDA=on", "-DGGML_METAL=on" or "-DGGML_VULKAN=on"), or leave the device out'
        )
    log_fallback("this build of llama-cpp-python has no support for a GPU")
    return 0
