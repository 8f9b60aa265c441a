"""Folder -> verified bundle.

Small files are hashed at every load, big ones at the first use on a device and whenever asked (`edge-prm check`):
hashing 1.6 GB takes a second or two, and an app that starts many times a day should not pay it each time. A stamp
next to the manifest records what was hashed; it holds the file's change time, which no copy preserves, so a copied
bundle is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_prm.errors import BundleIntegrityError, InputError
from edge_prm.manifest import MANIFEST_NAME, Manifest, read_manifest

STAMP_NAME = ".edge_prm_verified.json"
SMALL_FILE_BYTES = 32 << 20
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose files are verified, and its manifest."""

    folder: Path
    manifest: Manifest


def open_bundle(
    path: str | os.PathLike[str], *, verify_all: bool = False, progress: Callable[[int], None] | None = None
) -> Bundle:
    """Open a bundle folder and verify its files: names, sizes, hashes (all of them if `verify_all`).

    `progress` is called with the bytes hashed since the last call. Raises BundleNotFoundError, BundleVersionError,
    InputError for a path that is not UTF-8, or BundleIntegrityError that names the file and what is wrong with it.
    """
    folder = _folder(path)
    manifest = read_manifest(folder)
    stamps = {} if verify_all else _read_stamps(folder)
    fresh: dict[str, list[object]] = {}
    for name, entry in manifest.files.items():
        file = folder / name
        try:
            status = file.stat()
        except OSError:
            raise BundleIntegrityError(file, "the file is missing or cannot be read") from None
        if not stat.S_ISREG(status.st_mode):
            raise BundleIntegrityError(file, "a folder or a device, where the manifest lists a file")
        if status.st_size != entry.bytes:
            raise BundleIntegrityError(file, f"truncated or edited: {status.st_size} bytes instead of {entry.bytes}")
        stamp = _stamp(status, entry.sha256)
        if entry.bytes > SMALL_FILE_BYTES and stamps.get(name) == stamp:
            fresh[name] = stamp
            continue
        try:
            digest = sha256_of(file, progress)
        except OSError as error:
            raise BundleIntegrityError(file, f"the file cannot be read ({error.strerror})") from None
        if digest != entry.sha256:
            raise BundleIntegrityError(file, "edited: its SHA-256 is not the one in the manifest")
        if entry.bytes > SMALL_FILE_BYTES:
            fresh[name] = stamp
    if fresh and fresh != stamps:
        write_stamps(folder, fresh)
    return Bundle(folder, manifest)


def _folder(path: str | os.PathLike[str]) -> Path:
    """The path of a bundle; InputError for one that engines cannot open, BundleIntegrityError without a manifest file.

    Tokenizer and engines take UTF-8; a path of other bytes fails in each of them with another message.
    """
    folder = Path(os.fsdecode(path))
    try:
        unusable = b"\0" in str(folder).encode("utf-8")
    except UnicodeEncodeError:
        unusable = True
    if unusable:
        raise InputError(
            f"the path {str(folder)!a} of a bundle is not UTF-8 text without zero bytes; rename the folder"
        )
    file = folder / MANIFEST_NAME
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(file.stat().st_mode):  # reading a device or a pipe could take for ever
            raise BundleIntegrityError(file, "a folder or a device instead of a file")
    return folder


def stamp_files(folder: Path, manifest: Manifest) -> None:
    """Remember that the big files were just hashed; the exporter calls it on what it has written."""
    stamps = {
        name: _stamp((folder / name).stat(), entry.sha256)
        for name, entry in manifest.files.items()
        if entry.bytes > SMALL_FILE_BYTES
    }
    if stamps:
        write_stamps(folder, stamps)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file in hexadecimal digits; `progress` is called with the bytes read since the last call."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def _stamp(status: os.stat_result, sha256: str) -> list[object]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256]


def _read_stamps(folder: Path) -> dict[str, list[object]]:
    try:
        stamps = json.loads((folder / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def write_stamps(folder: Path, stamps: dict[str, list[object]]) -> None:
    """Write the stamp complete or not at all. A read-only bundle keeps none: it is hashed at each load."""
    temporary = folder / f"{STAMP_NAME}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(stamps), encoding="utf-8")
        os.replace(temporary, folder / STAMP_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
