"""An output folder comes complete or not at all.

It is written inside a hidden holder folder next to its place and renamed at the end. The holder has a lock file
(see edge_prm.output), so the next export to the same place knows the holders of processes that were killed, and removes
them. What is at the output is replaced only where that is asked for and only when it is a bundle, and the old one is
gone only when the new one has its name.

    .OUT.partial-xxxxxxxx/edge_prm.lock   held as long as the process lives
    .OUT.partial-xxxxxxxx/new/            the folder that is written; after an exchange, the one that was replaced
    .OUT.partial-xxxxxxxx/old/            the one that is replaced, where the system cannot exchange two names
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_prm.errors import EdgePRMError, ExportError, OutputExistsError
from edge_prm.manifest import MANIFEST_NAME
from edge_prm.output import lock, partial_prefix
from edge_prm_export.rename import exchange, rename_new

LOCK_NAME = "edge_prm.lock"
_NEW, _OLD = "new", "old"
_RANDOM = re.compile("[a-z0-9_]{8}")  # the end of a name by tempfile


def check_output(target: Path, replace: bool) -> None:
    """Refuse an output that exists; with `replace`, refuse one that is not a bundle: a folder of the user's own."""
    if not os.path.lexists(target):
        return
    if not replace:
        raise OutputExistsError(target)
    if not _replaceable(target):
        raise _not_a_bundle(target)


def check_space(target: Path, needed: int) -> None:
    """Refuse before any work when the disk cannot hold `needed` bytes."""
    existing = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ExportError(
            f"the bundle needs {needed / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free; "
            "make room or choose an output folder on another disk"
        )


@contextlib.contextmanager
def atomic_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a folder to write into; it becomes `target` when the block ends without an error, else it is removed.

    Raises OutputExistsError when something is at `target` in the end and `replace` is False, ExportError when what is
    there is not a bundle, when the system refuses, or when there is not enough memory.
    """
    target = Path(os.path.abspath(target))
    with _errors(target), _parents(target):
        remove_leftovers(target)
        holder, descriptor = _locked_holder(target)
        try:
            (holder / _NEW).mkdir()
            yield holder / _NEW
            _put_in_place(holder, target, replace)
        finally:
            if os.name == "nt":  # an open file cannot be removed there, and there is no lock to hold
                os.close(descriptor)
            _discard(holder, target)
            if os.name != "nt":
                os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove the holders of processes that were killed; put back a bundle that one of them was about to replace."""
    target = Path(os.path.abspath(target))
    prefix = partial_prefix(target)
    for holder in target.parent.glob(f"{glob.escape(prefix)}*"):
        if not _RANDOM.fullmatch(holder.name[len(prefix) :]) or holder.is_symlink() or not holder.is_dir():
            continue
        try:
            descriptor = os.open(holder / LOCK_NAME, os.O_RDWR)
        except OSError:  # no lock file: not ours, or killed before it was made, and then empty
            with contextlib.suppress(OSError):
                holder.rmdir()
            continue
        try:
            if lock(descriptor):
                _discard(holder, target)
        finally:
            os.close(descriptor)


def _locked_holder(target: Path) -> tuple[Path, int]:
    """A new holder folder of `target`, and the descriptor of its lock."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=partial_prefix(target), dir=target.parent))
        try:
            descriptor = os.open(holder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:  # another process took the empty folder for a leftover
            continue
        if lock(descriptor) is not False and (holder / LOCK_NAME).exists():
            return holder, descriptor
        os.close(descriptor)


def _put_in_place(holder: Path, target: Path, replace: bool) -> None:
    new, old = holder / _NEW, holder / _OLD
    if not (replace and os.path.lexists(target)):
        try:
            rename_new(new, target)
        except FileExistsError:
            raise OutputExistsError(target, appeared=True) from None
        return
    check_output(target, replace)
    if exchange(new, target):  # `new` is now what was there
        if not _replaceable(new):
            exchange(new, target)
            raise _not_a_bundle(target)
        return
    target.rename(old)
    if _replaceable(old):
        rename_new(new, target)
        return
    raise _not_a_bundle(target)  # _discard puts it back


def _discard(holder: Path, target: Path) -> None:
    """Remove a holder, its lock last; before that, put back what it was about to replace, if nothing is there now."""
    if os.path.lexists(holder / _OLD) and not os.path.lexists(target):
        try:
            rename_new(holder / _OLD, target)
        except OSError:
            return  # nothing is removed while the old one is only here
    for name in (_NEW, _OLD):
        shutil.rmtree(holder / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        if os.listdir(holder) == [LOCK_NAME]:
            (holder / LOCK_NAME).unlink()
    with contextlib.suppress(OSError):
        holder.rmdir()


def _replaceable(path: Path) -> bool:
    """Whether it is a bundle, or an empty folder; never a link."""
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MANIFEST_NAME).is_file() or not any(path.iterdir())


def _not_a_bundle(target: Path) -> ExportError:
    return ExportError(
        f"{target} is not an edge-prm bundle, and --force replaces only bundles; choose another output folder"
    )


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders around `target`; those that are still empty after an error are removed again."""
    existing = next(parent for parent in target.parents if parent.exists())
    if not existing.is_dir():
        raise ExportError(f"cannot write {target}: {existing} is not a folder; choose another output folder")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _errors(target: Path) -> Iterator[None]:
    """Turn the system's errors in the block into an ExportError that names `target`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EdgePRMError):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"cannot write {target}: {reason}; nothing was left there") from error
    except MemoryError as error:
        raise ExportError(
            "not enough memory to export; the 1.5B needs 3 GB: close other programs, or export on another machine"
        ) from error
