"""What Ctrl-C does to the `edge-prm` command: one line on stderr and exit code 130, within a second.

While a command runs, an interrupt is a KeyboardInterrupt, so that temporary files are removed on the way out. Some code
cannot be interrupted (a long call into a numerical library), and some loses the exception (a library that catches
everything, a callback). So a thread of its own hears of the signal as well, and ends the process if it still runs after
`GRACE_SECONDS`. Before and after the command's own work there is nothing to remove, and the process ends at once.

Only the command line does this: as a library, edge-prm never touches signal handlers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading

from edge_prm.exit_codes import EXIT_INTERRUPTED

TYPE_CHECKING = False  # not from typing: the fewer imports come before the handler is there, the better
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

GRACE_SECONDS = 0.7
MESSAGE = "Interrupted"


class _State:
    watching = False
    """Whether this process has our signal handler."""
    unwinding = False
    """Whether a command runs, so that an interrupt must unwind it."""
    interrupted = False
    ended = threading.Lock()
    folders: set[str] = set()  # noqa: RUF012 - one for the process
    """Temporary folders, to be removed before a forced end."""


def remove_at_forced_end(folder: str) -> None:
    """Remove a temporary folder also where an interrupt ends the process by force."""
    _State.folders.add(folder)


def keep_at_forced_end(folder: str) -> None:
    """Take back `remove_at_forced_end`."""
    _State.folders.discard(folder)


def watch() -> None:
    """Install the handler: for the command line, as early as possible.

    Where SIGINT is ignored (`nohup`), it stays ignored.
    """
    if _State.watching or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        return
    _State.watching = True
    signal.signal(signal.SIGINT, _on_interrupt)
    sys.unraisablehook = _on_unraisable
    if hasattr(os, "set_blocking") and os.name == "posix":  # elsewhere a wakeup must be a socket
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=_end_after_grace, args=(read_end,), daemon=True, name="edge-prm interrupt").start()


def run(command: Callable[[], object]) -> None:
    """Run the command line; an interrupt after its end is ignored, since everything is done."""
    watch()
    try:
        command()
    finally:
        if _State.watching:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def begin() -> None:
    """From here on an interrupt raises KeyboardInterrupt."""
    _State.unwinding = True


def end() -> None:
    """From here on an interrupt ends the process at once."""
    _State.unwinding = False


def interrupted() -> bool:
    """Whether an interrupt came, even if a library lost its KeyboardInterrupt or made another error of it."""
    return _State.interrupted


def leave() -> NoReturn:
    """Say so on stderr and exit with code 130: SystemExit in somebody else's process, at once in our own.

    At once, because interpreter exit waits for threads, and an engine that loads a model cannot be stopped. What was
    registered for the exit runs, such as the removal of temporary folders.
    """
    if not _State.watching:
        print(MESSAGE, file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    finally:
        _exit()


def _exit() -> NoReturn:
    if _State.ended.acquire(blocking=False):  # the line comes once, whoever is first
        _remove_folders()
        start = "\n" if os.isatty(2) else ""  # a progress bar may be on the current line
        with contextlib.suppress(OSError):  # nobody may read stderr
            os.write(2, f"{start}{MESSAGE}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _remove_folders() -> None:
    if _State.folders:
        import shutil  # tempfile has imported it

        for folder in list(_State.folders):
            shutil.rmtree(folder, ignore_errors=True)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if not _State.unwinding:
        _exit()
    if _would_be_lost(frame):
        threading.Timer(0.01, signal.raise_signal, [number]).start()
    elif not _State.interrupted:  # a second one must not interrupt the removal of temporary files
        _State.interrupted = True
        raise KeyboardInterrupt


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether nobody would see a KeyboardInterrupt: in `_on_unraisable`, or while a module written in C is initialized.

    Code of such a module may call Python code without a look at its exceptions: onnx ends the process with a
    segmentation fault.
    """
    while frame is not None:
        code = frame.f_code
        if code is _on_unraisable.__code__ or (
            code.co_name in ("create_module", "exec_module")
            and type(frame.f_locals.get("self")).__name__ == "ExtensionFileLoader"
        ):
            return True
        frame = frame.f_back
    return False


def _on_unraisable(unraisable: Any) -> None:
    """Raise a KeyboardInterrupt once more that came in a callback or finalizer, where Python can only print it."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, _again).start()  # not in here, where it would be lost as well
    else:
        sys.__unraisablehook__(unraisable)


def _again() -> None:
    _State.interrupted = False
    signal.raise_signal(signal.SIGINT)


def _end_after_grace(read_end: int) -> None:
    while signal.SIGINT not in os.read(read_end, 64):
        pass
    threading.Event().wait(GRACE_SECONDS)
    _exit()
