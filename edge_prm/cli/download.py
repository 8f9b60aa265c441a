"""Before a checkpoint is downloaded: say what, how large and where to, and ask."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from edge_prm import interrupts
from edge_prm.cli import verbosity
from edge_prm.errors import InputError, MissingExtraError
from edge_prm.source import DEFAULT_SOURCE, DOWNLOADED, NOT_DOWNLOADED, is_hub_id

KNOWN_BYTES = {DEFAULT_SOURCE: 3_100_000_000}
"""Approximate size of checkpoints, for when the hub does not answer."""
API_SECONDS = 10

_log = logging.getLogger("edge_prm")


class Download(NamedTuple):
    """A download that is needed: the hub id, its size in bytes (None: unknown), and the cache folder it goes to."""

    source: str
    size: int | None
    exact: bool
    cache: Path

    def __str__(self) -> str:
        """A sentence for people."""
        size = "unknown size" if self.size is None else f"{'' if self.exact else 'about '}{_readable(self.size)}"
        return f"{self.source} is not in the Hub cache; it needs a download of {size} to {self.cache}"


def ask_before_download(source: str, revision: str | None, yes: bool) -> None:
    """Return when nothing is to be downloaded, or when the user agrees: with --yes, or to a question on a terminal.

    Raises InputError for a "no", and without a terminal where --yes is missing; MissingExtraError without the hub's
    library.
    """
    download = pending_download(source, revision)
    if download is None:
        _log.info("%s: nothing to download", source)
        return
    if yes:
        verbosity.note(str(download))
    elif not sys.stdin.isatty():
        raise InputError(f"{download}; give --yes to agree, or a folder as SOURCE")
    else:
        click.echo(str(download), err=True)
        if not _agreed():
            raise InputError("nothing was downloaded; give a folder as SOURCE, or agree to the download")
    if verbosity.quiet():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def pending_download(source: str, revision: str | None = None) -> Download | None:
    """What `find_checkpoint` would download for a source; None for a local one, and for one that the cache holds.

    None as well for a hub id that does not exist or is not accessible: `find_checkpoint` says why. MissingExtraError
    without the hub's library.
    """
    if not is_hub_id(source):
        return None
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise MissingExtraError("export", ["huggingface_hub"]) from None
    cache = Path(constants.HF_HUB_CACHE)
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=API_SECONDS)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        _log.info("the hub refuses %s: %s", source, str(error).strip().partition("\n")[0])
        return None
    except Exception as error:  # network errors have no common base
        _log.info("the hub does not answer: %s", error)
        return None if _is_cached(source, revision) else Download(source, KNOWN_BYTES.get(source), False, cache)
    missing = [file for file in _wanted(info.siblings or ()) if not _is_held(cache, source, info.sha, file)]
    return Download(source, sum(file.size or 0 for file in missing), True, cache) if missing else None


def _agreed() -> bool:
    try:
        return click.confirm("Download it?", default=True, err=True)
    except click.Abort:  # Ctrl-D is a "no"
        if interrupts.interrupted():
            raise
        click.echo(err=True)  # the cursor is after the question
        return False


def _wanted(files: Iterable[Any]) -> Iterable[Any]:
    """The files of a repository that `find_checkpoint` downloads."""
    from huggingface_hub.utils import filter_repo_objects

    return filter_repo_objects(
        files, allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED, key=lambda file: file.rfilename
    )


def _is_held(cache: Path, source: str, commit: str | None, file: Any) -> bool:
    """Whether the hub's cache holds a file: as a blob that is named by its hash, or in the snapshot of a commit."""
    from huggingface_hub import try_to_load_from_cache

    etag = file.lfs.sha256 if file.lfs else file.blob_id
    if etag and (cache / f"models--{source.replace('/', '--')}" / "blobs" / etag).is_file():
        return True
    return isinstance(try_to_load_from_cache(source, file.rfilename, cache_dir=cache, revision=commit), str)


def _is_cached(source: str, revision: str | None) -> bool:
    """Whether the hub's cache holds a snapshot with its config and all of its weights; the hub is not asked."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:  # validation and cache errors have no common base
        return False
    weights = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            return set(json.loads(index.read_bytes())["weight_map"].values()) <= weights
        return False
    return bool(weights) and (folder / "config.json").is_file()


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{max(size, 1e5) / 1e6:.1f} MB"
