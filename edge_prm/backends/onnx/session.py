"""ONNX Runtime as a guest in a process: load a session, run it so that a signal can end the run, survive a fork."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge_prm.backends.guest import Guest, WeightFiles, keep_after_fork, make_immortal, skip_exit_handlers_after_fork
from edge_prm.backends.onnx.failures import failed
from edge_prm.backends.onnx.files import check_external_data
from edge_prm.backends.onnx.providers import CPU, Placement, check_placed, new_session, place, record_assignment
from edge_prm.backends.options import PROVIDER_OPTION, EngineOptions, set_options
from edge_prm.bundle import Bundle
from edge_prm.cores import usable_cores
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import BackendError, InputError, MissingExtraError

if TYPE_CHECKING:
    import onnxruntime

MODEL_NAME = "model.onnx"
LAST_POSITION, TOTAL_LENGTH = "total_length.less_one", "total_length"
"""Inputs of a graph for a GPU: the position of the last token of each sequence, and the tokens of the longest."""
_CONFIG_PREFIXES = ("session.", "optimization.", "mlas.", "memory.", "ep.")
"""Of session config entries, which ONNX Runtime ignores when it does not know them (its header
onnxruntime_session_options_config_keys.h lists them)."""

Result = TypeVar("Result")


class OnnxSession:
    """An InferenceSession of a bundle; runs of several threads take turns, since each run uses all of its threads.

    A forked child opens a session of its own when it first needs it, since those of its parent have no threads there.
    With a GPU it cannot: CUDA does not survive a fork, and the child is told so.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self._path = path = bundle.folder / MODEL_NAME
        self._options = options
        self._reopen = False
        self._seconds_per_token = math.inf  # of the last run
        files = bundle.manifest.files
        self._files = WeightFiles(bundle.folder / name for name in files if name != TOKENIZER_NAME)
        check_external_data(path, files)
        self._guest = Guest()
        self._lock = threading.Lock()
        self.placement = place(options, bundle)
        self._session: onnxruntime.InferenceSession | None = open_session(path, options, self.placement)
        keep_after_fork(self)

    @property
    def engine(self) -> onnxruntime.InferenceSession:
        """The session itself; BackendError when the model is closed."""
        if self._reopen:
            self._files.check_places()
            self._session, self._reopen = open_session(self._path, self._options, self.placement), False
        if self._session is None:
            raise BackendError("the model is closed; load it again")
        return self._session

    def check(self) -> None:
        """BackendError when a file of the weights was overwritten."""
        self._guest.check()
        self._files.check()

    def run(self, call: Callable[[onnxruntime.InferenceSession, Any], Result], offset: int, tokens: int) -> Result:
        """Return `call(session, run options)`, a run of `tokens` after `offset` others; BackendError when it fails."""
        self._guest.check()
        options = _run_options()

        def stop() -> None:
            options.terminate = True

        def locked() -> Result:
            with self._lock:
                self._files.check()
                session = self.engine
                start = time.perf_counter()
                try:
                    result = call(session, options)
                    self._seconds_per_token = (time.perf_counter() - start) / tokens
                except Exception as error:
                    raise failed(f"ONNX Runtime failed at token {offset}", error) from error
                self._files.check()
                return result

        return self._guest.run(locked, stop, tokens * self._seconds_per_token)

    def close(self) -> None:
        """Free the weights, after a run of another thread."""
        with self._lock:
            self._session, self._reopen = None, False
        if self._guest.at_home:
            self._guest.close()

    def abandon(self) -> None:
        """Called in a forked child: a session frees itself by waiting for its threads, which are not there."""
        if self._session is not None:
            make_immortal(self._session)
            make_immortal(getattr(self._session, "_sess", None))
            self._session, self._reopen = None, True
        if self.placement.provider == CPU:
            self._guest = Guest()
        self._lock = threading.Lock()  # a thread that is not in this process may hold the old one


def open_session(
    path: Path,
    options: EngineOptions,
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> onnxruntime.InferenceSession:
    """An InferenceSession; BackendError with the engine's reason when it cannot load the graph there."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("cpu", ["onnxruntime"]) from None
    skip_exit_handlers_after_fork()
    session_options = _session_options(onnxruntime.SessionOptions(), options)
    if placement.provider != CPU:
        record_assignment(session_options)
    try:
        session: onnxruntime.InferenceSession = new_session(str(path), session_options, placement)
    except Exception as error:  # the engine's exceptions have no common base of their own
        raise failed(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}", error) from error
    check_placed(session, placement)
    return session


def _session_options(session_options: Any, options: EngineOptions) -> Any:
    """ONNX Runtime's own options with ours and those of the user; a name with a dot is a session config entry."""
    session_options.log_severity_level = 4  # errors come as exceptions; a second copy on stderr helps nobody
    # The engine's own default binds its threads to cores: those of several processes to the same cores.
    session_options.intra_op_num_threads = options.threads or usable_cores()
    given = {name: value for name, value in options.options.items() if not name.startswith(PROVIDER_OPTION)}
    entries = {name: value for name, value in given.items() if "." in name}
    known = [name for name in dir(session_options) if name[0] != "_" and not callable(getattr(session_options, name))]
    attributes = {name: value for name, value in given.items() if name not in entries}
    set_options(session_options, attributes, known, "ONNX Runtime")
    for name, value in entries.items():
        if not name.startswith(_CONFIG_PREFIXES):
            raise InputError(
                f"ONNX Runtime has no option {name!r}; session config entries begin with {', '.join(_CONFIG_PREFIXES)}"
            )
        session_options.add_session_config_entry(name, str(value))
    return session_options


def _run_options() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # a run that is ended is no error to be told on stderr
    return options
