"""SOURCE -> checkpoint folder: a folder, a hub id, or an embedded demo; and the hash that tells checkpoints apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edge_prm.errors import CheckpointError, CheckpointNotFoundError, MissingExtraError

DEFAULT_SOURCE = "Gen-Verse/ReasonFlux-PRM-1.5B"
FILE_PATTERNS = ["*.json", "*.safetensors", "reward_head.pt", "chat_template.jinja"]
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


class FoundCheckpoint(NamedTuple):
    """Where a checkpoint lies, what it is called, and its commit when it came from the hub."""

    folder: Path
    name: str
    revision: str | None = None


def find_checkpoint(source: str, revision: str | None = None) -> FoundCheckpoint:
    """Return the folder of a source, downloaded at `revision` when it is a hub id.

    Raises CheckpointNotFoundError when there is none, CheckpointError for a revision of a folder.
    """
    from edge_prm.demo import CHECKPOINTS
    from edge_prm.demo import folder as demo_folder

    folder = Path(source)
    if source in CHECKPOINTS and not folder.exists():
        return FoundCheckpoint(demo_folder(source), source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"--revision {revision} goes with a hub id, and {source} is a folder")
        return FoundCheckpoint(folder, folder.resolve().name)
    if folder.exists():
        raise CheckpointNotFoundError(source, "it is a file, not a folder")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointNotFoundError(source, "no such folder")
    return _download(source, revision)


def checkpoint_sha256(folder: Path) -> str:
    """Hash of a checkpoint's own files: config, index and heads whole, weight files by size, header and samples.

    Two checkpoints of one family have the same headers; evenly spread samples of the weights tell them apart.
    """
    digest = hashlib.sha256()
    for path in sorted(p for pattern in FILE_PATTERNS for p in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            digest.update(_sample(file, size) if path.suffix == ".safetensors" else file.read())
    return digest.hexdigest()


def _sample(file: BinaryIO, size: int) -> bytes:
    """The first bytes, the header among them, and blocks spread evenly over the rest."""
    parts = []
    for index in range(_SAMPLES):
        file.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
        parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)


def _download(source: str, revision: str | None) -> FoundCheckpoint:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("export", ["huggingface_hub"]) from None
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=FILE_PATTERNS))
    except Exception as error:  # network, HTTP and validation errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointNotFoundError(
            source, f"no such folder, and the download from the hub failed ({reason})"
        ) from None
    return FoundCheckpoint(folder, source, folder.name)  # the hub's cache names the folder after the commit
