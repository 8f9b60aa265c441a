"""What a writer of weights is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_prm.bundle import sha256_of
from edge_prm.encode import Encoded, Encoder
from edge_prm.head import Head
from edge_prm.manifest import FileEntry, Manifest, Recipe
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.progress import Progress

EncodedTexts = list[tuple[str, tuple[str, ...], Encoded]]
"""(prompt, steps, tokens) of our own texts."""


@dataclass(frozen=True)
class ExportJob:
    """What a writer of weights is given. `manifest` tells all but recipe, weights and golden rewards; of several
    `recipes` the writer chooses."""

    folder: Path
    recipes: tuple[Recipe, ...]
    manifest: Manifest
    checkpoint: Checkpoint
    head: Head
    encoder: Encoder
    golden: EncodedTexts
    progress: Progress


@dataclass(frozen=True)
class ExportResult:
    """What a writer of weights leaves behind: the recipe that it chose among those it was given, its files, and the
    golden texts' rewards in full precision."""

    recipe: Recipe
    files: Mapping[str, FileEntry]
    references: list[list[float]]
    reference: str = "numpy fp32"


def file_entry(path: Path) -> FileEntry:
    return FileEntry(sha256_of(path), path.stat().st_size)
