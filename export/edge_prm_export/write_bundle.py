"""Checkpoint -> bundle folder: all of it, or nothing.

Everything is written into a temporary folder beside the output, verified there, and renamed at the end.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edge_prm
from edge_prm.backends import load_model
from edge_prm.bundle import Bundle, sha256_of, stamp_files
from edge_prm.encode import TOKENIZER_NAME, Encoded, Encoder
from edge_prm.errors import CheckpointError, CheckpointNotFoundError, ExportError, InputError, OutputExistsError
from edge_prm.manifest import (
    MANIFEST_NAME,
    Architecture,
    Fidelity,
    FileEntry,
    Golden,
    Head,
    InputFormat,
    Manifest,
    Recipe,
    Source,
)
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint import DEFAULT_SOURCE, Checkpoint, open_checkpoint
from edge_prm_export.graph import GraphWriter, WeightFile
from edge_prm_export.head import RewardHead, read_head
from edge_prm_export.linears import Fp32Linears, Int8Linears, Linears
from edge_prm_export.progress import Progress, silent
from edge_prm_export.template import input_format
from edge_prm_export.to_onnx import write_graph
from edge_prm_export.verify import golden_trajectories, reference_rewards

GRAPH_NAME = "model.onnx"
WEIGHTS_NAME = "model.onnx.data"
RECIPES = ("int8", "fp32")
TOLERANCES = {"int8": 0.06, "fp32": 1e-3}
"""Largest difference of a golden reward from full precision at which a device's kernels are trusted: several times what
rounding alone gives, far below what saturating or broken kernels give."""


def export(
    source: str = DEFAULT_SOURCE,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str = "int8",
    revision: str | None = None,
    reduce_range: bool = False,
    separator: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Export a checkpoint to an ONNX bundle and return the bundle's folder.

    `source`: a folder, a hub id, `demo` or `demo-reference`. `output`: by default a folder in the current one, named
    after checkpoint and recipe. `reduce_range`: 7-bit weights, for processors whose 8-bit kernels saturate. Raises
    CheckpointError, OutputExistsError, ExportError (disk full, not writable) or MissingExtraError; nothing
    half-written is left behind.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe!r} is not known; choose one of {', '.join(RECIPES)}")
    if reduce_range and recipe != "int8":
        raise InputError(f"reduce_range goes with recipe int8; {recipe} has no 8-bit weights to reduce")
    target = Path(output) if output is not None else default_output(source, recipe, reduce_range)
    check_output(target, force)
    checkpoint = open_checkpoint(source, revision)
    head = read_head(checkpoint)
    form = input_format(checkpoint, head.kind, separator)
    tokenizer = checkpoint.folder / TOKENIZER_NAME
    if not tokenizer.is_file():
        raise CheckpointNotFoundError(checkpoint.name, f"{TOKENIZER_NAME} is missing")
    check_space(target, checkpoint, recipe)
    with _atomic_folder(target) as folder:
        shutil.copyfile(tokenizer, folder / TOKENIZER_NAME)
        files = {TOKENIZER_NAME: _entry(folder / TOKENIZER_NAME)}
        files |= _write_model(folder, checkpoint, head, recipe, reduce_range, progress)
        manifest = _manifest(checkpoint, head, form, Recipe(recipe, reduce_range), files)
        manifest = with_golden(Bundle(folder, manifest), checkpoint, head, progress)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    stamp_files(target, manifest)
    return target


def default_output(source: str, recipe: str, reduce_range: bool) -> Path:
    name = Path(source).resolve().name if Path(source).is_dir() else source.rsplit("/", 1)[-1]
    return Path(f"{name}-{recipe}" + ("-reduced" if reduce_range else ""))


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


def check_space(target: Path, checkpoint: Checkpoint, recipe: str) -> None:
    """Refuse before any work when the disk cannot hold the bundle."""
    bytes_each = 4 if recipe == "fp32" else 1
    values = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.tensor_names if name != "lm_head.weight")
    needed = int(values * bytes_each * 1.03) + (64 << 20)
    existing = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ExportError(
            errno.ENOSPC, f"the bundle needs {needed / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free"
        )


def with_golden(bundle: Bundle, checkpoint: Checkpoint, head: RewardHead, progress: Progress) -> Manifest:
    """Score the golden trajectories with bundle and checkpoint; return the manifest with the rewards of both."""
    manifest = bundle.manifest
    encoder = Encoder(bundle.folder / TOKENIZER_NAME, manifest)
    texts = list(golden_trajectories(manifest.context_length))
    encoded = [encoder.encode(Trajectory.of(prompt, list(steps))) for prompt, steps in texts]
    references: list[list[float]] = []
    with progress("scoring golden trajectories in fp32", checkpoint.config.layers) as advance:
        for event in reference_rewards(checkpoint, head, encoded):
            if isinstance(event, int):
                advance(1)
            else:
                references = event
    with progress("scoring golden trajectories with the bundle", len(encoded)) as advance:
        scored = _bundle_rewards(bundle, encoded, advance)
    golden = tuple(
        Golden(prompt, steps, text.sha256(), tuple(reference), tuple(rewards))
        for (prompt, steps), text, reference, rewards in zip(texts, encoded, references, scored, strict=True)
    )
    differences = np.abs(np.concatenate(references) - np.concatenate(scored))
    fidelity = Fidelity(
        reference="numpy fp32",
        rewards=len(differences),
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
        tolerance=TOLERANCES[manifest.recipe.name],
    )
    return replace(manifest, golden=golden, fidelity=fidelity)


def _bundle_rewards(bundle: Bundle, texts: list[Encoded], advance: Any) -> list[list[float]]:
    model = load_model(bundle, "auto", None, "auto")
    scored = []
    for text in texts:
        sequence = model.start()
        scored.append(sequence.extend(text.ids, text.read_at).astype(float).tolist())
        sequence.close()
        advance(1)
    model.close()
    return scored


def _write_model(
    folder: Path, checkpoint: Checkpoint, head: RewardHead, recipe: str, reduce_range: bool, progress: Progress
) -> dict[str, FileEntry]:
    weights = WeightFile(folder / WEIGHTS_NAME)
    try:
        graph = GraphWriter(weights)
        linears: Linears = Fp32Linears(graph) if recipe == "fp32" else Int8Linears(graph, reduce_range=reduce_range)
        with progress(f"writing {recipe} layers", checkpoint.config.layers) as advance:
            for _ in write_graph(graph, checkpoint, head, linears):
                advance(1)
        (folder / GRAPH_NAME).write_bytes(graph.model(edge_prm.__version__))
        return {WEIGHTS_NAME: weights.close(), GRAPH_NAME: _entry(folder / GRAPH_NAME)}
    finally:
        weights.abort()


def _manifest(
    checkpoint: Checkpoint, head: RewardHead, form: InputFormat, recipe: Recipe, files: dict[str, FileEntry]
) -> Manifest:
    config = checkpoint.config
    return Manifest(
        edge_prm_version=edge_prm.__version__,
        backend="onnx",
        source=Source(checkpoint.name, checkpoint.revision, checkpoint.sha256()),
        architecture=Architecture(
            model_type="qwen2",
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary,
        ),
        head=Head(head.kind, "last" if head.kind == "sigmoid" else "min"),
        input=form,
        context_length=config.context_length,
        recipe=recipe,
        files=files,
    )


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256_of(path), path.stat().st_size)


@contextmanager
def _atomic_folder(target: Path) -> Iterator[Path]:
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
