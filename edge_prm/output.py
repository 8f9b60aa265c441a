"""Outputs come complete or not at all.

A file is written under a hidden name next to its target and renamed at the end. The process that writes it holds a
lock on it, and the system drops that lock however the process ends. So a partial file without a lock is left over from
a process that was killed, and the next run to the same target removes it; a partial file of a process that still runs
is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edge_prm import interrupts
from edge_prm.errors import OutputError


def check_file(target: Path) -> None:
    """Before any work: OutputError when `target` is a folder, or when its folder is missing or cannot be written to."""
    parent = target.absolute().parent
    if target.is_dir():
        raise OutputError(f"{target} cannot be written: it is a folder; give the name of a file")
    if not parent.is_dir():
        raise OutputError(f"{target} cannot be written: there is no folder {parent}; make it first")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{target} cannot be written: no permission to write into {parent}")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[IO[str]]:
    """Give a UTF-8 text file to write into; it takes the place of `target` when the block ends without an error.

    A block that fails leaves nothing, and what `target` held before stays. Raises OutputError when the system refuses.
    """
    check_file(target)
    remove_leftovers(target)
    with writing(target):
        descriptor, partial = _locked_partial(target)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                os.chmod(partial, 0o666 & ~_umask())  # mkstemp makes it private
                yield file
                file.flush()
                os.fsync(file.fileno())
                if os.name != "nt":  # the lock is held until the file has its name
                    os.replace(partial, target)
            if os.name == "nt":  # an open file cannot be renamed there
                os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that is removed at the end of the block, and where an interrupt ends the process by force."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        interrupts.remove_at_forced_end(name)
        try:
            yield Path(name)
        finally:
            interrupts.keep_at_forced_end(name)


def write_file(target: Path, text: str) -> None:
    """Write a text file complete or not at all; OutputError when the system refuses."""
    with atomic_file(target) as file:
        file.write(text)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the system's errors in the block into an OutputError that names `target`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError) or type(error).__module__.startswith("edge_prm"):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OutputError(f"{target} cannot be written: {reason}; nothing was left there") from error


def partial_prefix(target: Path) -> str:
    """How the names of partial outputs of `target` begin."""
    return f".{target.name}.partial-"


def remove_leftovers(target: Path) -> None:
    """Remove partial files of `target` whose process has ended."""
    parent = target.absolute().parent
    for path in parent.glob(f"{glob.escape(partial_prefix(target))}*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                if not is_locked(path):
                    path.unlink()


def is_locked(path: Path) -> bool:
    """Whether a process that runs holds the lock of a partial output; True where locks are not known."""
    with open(path, "rb+") as file:
        return not lock(file.fileno())


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open file until it is closed.

    False when another process has it, None where the system or the file system has no locks: a partial output is then
    never taken for a leftover.
    """
    try:
        import fcntl
    except ImportError:  # Windows: partial files are left to the user there
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _locked_partial(target: Path) -> tuple[int, Path]:
    """A new partial file of `target`, open and locked."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=partial_prefix(target), dir=target.absolute().parent)
        if lock(descriptor) is not False and os.path.exists(name):  # else another process took it for a leftover
            return descriptor, Path(name)
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
