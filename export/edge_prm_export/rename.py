"""Renames that never destroy: to a name that must be free, and an exchange of two names in one step.

Linux and macOS have system calls for both, which Python does not offer. Where the system or the file system does not
know them, the first has a substitute, and the second reports that it did nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

_NO_REPLACE, _EXCHANGE = {"linux": (1, 2), "darwin": (4, 2)}.get(sys.platform, (0, 0))
_AT_FDCWD = -100
_NOT_KNOWN = (errno.ENOSYS, errno.EINVAL, getattr(errno, "ENOTSUP", 0), getattr(errno, "EOPNOTSUPP", 0))


def rename_new(source: Path, target: Path) -> None:
    """Rename a folder; FileExistsError when there is anything at `target`, an empty folder and a link included."""
    if _rename(source, target, _NO_REPLACE):
        return
    if os.name == "nt":  # its rename never replaces
        os.rename(source, target)
        return
    os.mkdir(target)  # takes the name, or fails; a rename replaces an empty folder in one step
    try:
        os.rename(source, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.rmdir(target)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # something was written into it meanwhile
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False, and nothing is done, where that is not known."""
    return _rename(one, other, _EXCHANGE)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """The system's rename with a flag; False where it is not known, OSError when it fails."""
    try:
        import ctypes
    except ImportError:  # a Python that was built without it
        return False
    names = (os.fsencode(source), os.fsencode(target))
    if sys.platform == "linux":
        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        arguments = (_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(flag))
    elif sys.platform == "darwin":
        call = getattr(ctypes.CDLL(None, use_errno=True), "renamex_np", None)
        arguments = (*names, ctypes.c_uint(flag))  # type: ignore[assignment]  # another call, other arguments
    else:
        return False
    if call is None:
        return False
    if call(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_KNOWN:
        return False
    raise OSError(number, os.strerror(number), str(target))
