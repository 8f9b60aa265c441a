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
    """What a writer of weights is given.

    `folder` is empty but for the tokenizer. `manifest` is complete except for recipe, weights and golden rewards; the
    writer chooses one of `recipes`.
    """

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
    """What a writer of weights returns: its choice of recipe, its files, and the rewards of the golden texts in full
    precision, a list for each text. `reference` names what computed these."""

    recipe: Recipe
    files: Mapping[str, FileEntry]
    references: list[list[float]]
    reference: str = "numpy fp32"


def file_entry(path: Path) -> FileEntry:
    """The hash and the size of a file."""
    return FileEntry(sha256_of(path), path.stat().st_size)
