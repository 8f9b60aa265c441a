"""What llama.cpp is asked beside running a model: to be quiet, to show hidden states, to use a GPU."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends.guest import log_fallback
from edge_prm.errors import BackendError, InputError

Floats = npt.NDArray[np.float32]

_HIDDEN_STATE = b"result_norm"  # llama.cpp's name for the final norm's output, in every model of this family


class Watcher:
    """Copies the hidden states of read positions while llama.cpp computes, and stops a computation."""

    def __init__(self, llama_cpp: Any, hidden: int) -> None:
        self.seen: list[Floats] = []
        self.error: BaseException | None = None
        """What went wrong in a callback: an exception cannot pass through the engine, and ctypes only prints it."""
        self.stop: StopFlag | None = None
        self._hidden = hidden
        ggml = _ggml()
        self._name, self._count, self._copy = ggml.ggml_get_name, ggml.ggml_nelements, ggml.ggml_backend_tensor_get
        self._name.argtypes, self._name.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._count.argtypes, self._count.restype = [ctypes.c_void_p], ctypes.c_int64
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._copy.restype = None
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._watch)

    def begin(self, stop: StopFlag) -> None:
        """Forget the last run; `stop` belongs to the next one."""
        self.seen.clear()
        self.error, self.stop = None, stop

    def rows(self, count: int) -> Floats:
        """The hidden states of the last run, float32 `[count, hidden]`; BackendError when the engine showed others."""
        rows = np.concatenate([np.empty((0, self._hidden), dtype=np.float32), *self.seen])
        if len(rows) != count:
            raise BackendError(f"llama.cpp showed {len(rows)} hidden states instead of {count}; use another version")
        return rows

    def _watch(self, tensor: int, ask: bool, data: object) -> bool:
        """Asked which tensors are of interest, and then shown them; True lets the computation go on."""
        try:
            if self._name(tensor) != _HIDDEN_STATE:
                return not ask
            if not ask:
                values = np.empty(self._count(tensor), dtype=np.float32)
                self._copy(tensor, values.ctypes.data, 0, values.nbytes)
                self.seen.append(values.reshape(-1, self._hidden))
        except BaseException as error:
            self.error = error
            return False
        return True


class StopFlag:
    """Makes llama.cpp give up a run at its next operator, on CPUs.

    The engine asks a function at every operator. One of Python would make it wait for Python's lock each time, so it is
    one of C: `strlen` of the flag, which is 0 until it is set.
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
"""Environment variable: with any value but nothing or 0, llama.cpp's own lines go where they went before."""


class _Silence:
    """Takes llama.cpp's lines while an engine works for us, and gives them back to whoever had them before.

    llama.cpp has one log function for a process, and the process may hold models of somebody else.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may free a model in the midst of `enter` or `leave`
        self._depth = 0
        self._listeners: list[list[str]] = []
        self._callback: Any = None  # the engine may still call it in another thread, so it is never freed
        self._before: tuple[Any, Any] | None = None

    def enter(self, lines: list[str]) -> None:
        import llama_cpp

        with self._lock:
            self._listeners.append(lines)
            self._depth += 1
            if self._depth > 1:
                return
            if self._callback is None:
                self._callback = llama_cpp.llama_log_callback(self._hear)
            if self._before is None and hasattr(llama_cpp, "llama_log_get"):
                before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
                llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
                self._before = before, data
            llama_cpp.llama_log_set(self._callback, ctypes.c_void_p())

    def leave(self, lines: list[str]) -> None:
        import llama_cpp

        with self._lock:
            self._listeners = [others for others in self._listeners if others is not lines]
            self._depth -= 1
            if self._depth == 0 and self._before is not None:
                llama_cpp.llama_log_set(*self._before)
                self._before = None

    def _hear(self, level: int, text: bytes, data: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        for lines in list(self._listeners):
            lines.append(line)
            del lines[:-_KEPT_LINES]


_KEPT_LINES = 200
_silence = _Silence()


@contextmanager
def engine_lines() -> Iterator[list[str]]:
    """Collect what the engine says, for an error message, instead of having it on stderr."""
    lines: list[str] = []
    if os.environ.get(LOG_VARIABLE, "0") not in ("", "0"):
        yield lines
        return
    _silence.enter(lines)
    try:
        yield lines
    finally:
        _silence.leave(lines)


def quieten() -> None:
    """Silence llama.cpp for the rest of this process; for processes of our own."""
    _silence.enter([])


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
    """Layers for the GPU; InputError when one is asked for that is not there, or when two options contradict."""
    if device == "cpu" and wanted:
        raise InputError(f"gpu_layers is {wanted} and device is 'cpu'; choose one of them")
    if device == "gpu" and wanted == 0:
        raise InputError("gpu_layers is 0 and device is 'gpu'; give the GPU at least one layer, or choose device 'cpu'")
    if device == "cpu" or wanted == 0:
        return 0
    if llama_cpp.llama_supports_gpu_offload():
        return layers + 1 if wanted is None else wanted
    if device == "gpu" or wanted:
        raise InputError(
            "this build of llama-cpp-python runs on the CPU only; install one built for your GPU "
            '(CMAKE_ARGS="-DGGML_CUDA=on", "-DGGML_METAL=on" or "-DGGML_VULKAN=on"), or leave the device out'
        )
    log_fallback("this build of llama-cpp-python has no support for a GPU")
    return 0
