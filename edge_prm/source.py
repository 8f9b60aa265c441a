"""SOURCE -> checkpoint folder: a folder, a hub id, a folder of the hub's cache, or an embedded demo."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

from edge_prm.checkpoint_files import checkpoint_files, checkpoint_sha256, gguf_error, reading
from edge_prm.errors import CheckpointError, CheckpointNotFoundError, MissingExtraError
from edge_prm.notices import AmbiguousSourceWarning

__all__ = ["DEFAULT_SOURCE", "FoundCheckpoint", "checkpoint_files", "checkpoint_sha256", "find_checkpoint"]

DEFAULT_SOURCE = "Gen-Verse/ReasonFlux-PRM-1.5B"
EMBEDDED = "embedded:"
"""`embedded:demo` is what `demo` is, and never leads to the question which one is meant."""
DOWNLOADED = [
    *("*.json", "*.safetensors", "*.jinja", "reward_head.pt"),
    *("tokenizer.model", "spiece.model", "merges.txt"),  # not read: a message says how to make tokenizer.json of them
]
NOT_DOWNLOADED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "checkpoint-*/*"]
"""The same weights in another layout, as some repositories hold them."""
_CACHED = re.compile("models--(.+)")  # how the hub's cache names the folder of a repository


class FoundCheckpoint(NamedTuple):
    """Where a checkpoint lies, what it is called, and its commit when it came from the hub."""

    folder: Path
    name: str
    revision: str | None = None


def find_checkpoint(source: str, revision: str | None = None) -> FoundCheckpoint:
    """Return the folder of a source, downloaded at `revision` when it is a hub id.

    `demo` and `demo-reference` are always the embedded ones, with an AmbiguousSourceWarning when there is a folder of
    that name here; `./demo` is that folder. Of the hub's cache, the folder of a repository (`models--owner--name`) is
    taken at `revision` or at its main branch, and the folder of a snapshot as it is; the repository names both.

    Raises CheckpointNotFoundError when there is none, CheckpointError for a revision of a folder or for a GGUF file.
    """
    from edge_prm.demo import CHECKPOINTS
    from edge_prm.demo import folder as demo_folder

    name = source.removeprefix(EMBEDDED)
    if name in CHECKPOINTS:
        if revision is not None:
            raise CheckpointError(f"--revision {revision} goes with a hub id, and {source} is embedded")
        if name == source and Path(source).is_dir():
            warnings.warn(
                f"{source} is the embedded checkpoint; for the folder {source} that is here, write ./{source}",
                AmbiguousSourceWarning,
                stacklevel=2,
            )
        return FoundCheckpoint(demo_folder(name), name)
    if found := _local(source, revision):
        return found
    if not _looks_like_hub_id(source):
        raise CheckpointNotFoundError(source, "no such folder")
    return _download(source, revision)


def is_hub_id(source: str) -> bool:
    """Whether `find_checkpoint` asks the hub for a source: it looks like a hub id and nothing is at that path."""
    folder = Path(source)
    with reading(folder):
        return _looks_like_hub_id(source) and not folder.exists()


def _looks_like_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~", EMBEDDED))


def name_of(source: str) -> str:
    """What the checkpoint of a source is called, without its owner; nothing is downloaded."""
    if source.startswith(EMBEDDED):
        return source.removeprefix(EMBEDDED)
    from edge_prm.demo import CHECKPOINTS

    found = None if source in CHECKPOINTS else _local(source, None, any_revision=True)
    return (found.name if found else source).rstrip("/").rsplit("/", 1)[-1]


def _local(source: str, revision: str | None, any_revision: bool = False) -> FoundCheckpoint | None:
    """The checkpoint at a path, None when there is nothing."""
    folder = Path(source)
    with reading(folder):
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise _file_error(folder)
        place = folder.resolve()
        root = place.parent if place.name == "snapshots" else place
        if (cached := _CACHED.fullmatch(root.name)) and (root / "snapshots").is_dir():
            name = cached[1].replace("--", "/", 1)
            commit = "" if any_revision else _commit(root, name, revision)
            return FoundCheckpoint(root / "snapshots" / commit, name, commit)
    cached = _CACHED.fullmatch(place.parent.parent.name) if place.parent.name == "snapshots" else None
    if revision is not None and (cached is None or revision != place.name):
        raise CheckpointError(f"--revision {revision} goes with a hub id, and {source} is a folder")
    if cached:
        return FoundCheckpoint(folder, cached[1].replace("--", "/", 1), place.name)
    return FoundCheckpoint(folder, place.name)


def _commit(root: Path, name: str, revision: str | None) -> str:
    """The snapshot of a repository in the hub's cache: that of a revision, of the main branch, or the only one."""
    snapshots = sorted(path.name for path in (root / "snapshots").iterdir() if path.is_dir())
    branch = root / "refs" / (revision or "main")
    commit = branch.read_text(encoding="utf-8").strip() if branch.is_file() else revision
    if commit is None and len(snapshots) == 1:
        return snapshots[0]
    if commit in snapshots:
        return str(commit)
    what = f"no snapshot of revision {revision or 'main'}" if snapshots else "no snapshot"
    remedy = f"give one of {root}/snapshots ({', '.join(snapshots[:3])})" if snapshots else f"give the hub id {name}"
    raise CheckpointNotFoundError(root, f"this folder of the hub's cache holds {what}", remedy)


def _file_error(path: Path) -> CheckpointError:
    with open(path, "rb") as file:
        if path.suffix == ".gguf" or file.read(4) == b"GGUF":
            return gguf_error(path)
    if (path.parent / "config.json").is_file():
        return CheckpointNotFoundError(
            path, "it is a file, not a folder", f"give the folder that it lies in: {path.parent}"
        )
    return CheckpointNotFoundError(path, "it is a file, not a folder")


def _download(source: str, revision: str | None) -> FoundCheckpoint:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("export", ["huggingface_hub"]) from None
    try:
        folder = Path(
            snapshot_download(source, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED)
        )
    except Exception as error:  # network, HTTP and validation errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointNotFoundError(
            source, f"no such folder, and the download from the hub failed ({reason})"
        ) from None
    return FoundCheckpoint(folder, source, folder.name)  # the hub's cache names the folder after the commit
