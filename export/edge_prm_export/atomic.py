"""An output folder comes whole or not at all: written beside its place, renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import edge_prm
from edge_prm.errors import CheckpointError, ExportError, OutputExistsError
from edge_prm.manifest import MANIFEST_NAME


def check_output(target: Path, force: bool) -> None:
    """Refuse an output that exists; with `force`, refuse one that is not a bundle: a folder of the user's own."""
    if not (target.exists() or target.is_symlink()):
        return
    if not force:
        raise OutputExistsError(target)
    if (
        target.is_dir()
        and not target.is_symlink()
        and ((target / MANIFEST_NAME).is_file() or not any(target.iterdir()))
    ):
        return
    raise ExportError(
        f"{target} is not an edge-prm bundle, and --force replaces only bundles; choose another output folder"
    )


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
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; rename it when the block ends well, remove it when not."""
    temporary = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _swap(temporary, target)
    except OSError as error:
        if isinstance(error, edge_prm.EdgePRMError):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"cannot write {target}: {reason}; nothing was left behind") from error
    except MemoryError as error:
        raise CheckpointError("not enough memory to export; the 1.5B needs 3 GB") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    """Put the new folder in the old one's place; the old one is gone only when the new one stands."""
    if not target.exists():
        temporary.rename(target)
        return
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
