"""Checkpoint -> bundle folder: all of it, or nothing.

Everything is written into a temporary folder beside the output, verified there, and renamed at the end.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edge_prm
from edge_prm.aggregate import default_aggregate
from edge_prm.backends import load_model
from edge_prm.bundle import Bundle, sha256_of, stamp_files
from edge_prm.encode import TOKENIZER_NAME, Encoded, Encoder
from edge_prm.errors import (
    CheckpointError,
    ContextLengthError,
    ExportError,
    InputError,
    MissingExtraError,
    OutputExistsError,
)
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
from edge_prm.source import DEFAULT_SOURCE
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint import Checkpoint, open_checkpoint
from edge_prm_export.graph import GraphWriter, WeightFile
from edge_prm_export.head import RewardHead, read_head
from edge_prm_export.linears import Fp32Linears, Int8Linears, Linears
from edge_prm_export.progress import Progress, silent
from edge_prm_export.reference import ReferenceRun
from edge_prm_export.template import input_format
from edge_prm_export.texts import CALIBRATION, GOLDEN
from edge_prm_export.to_onnx import write_graph

Texts = tuple[tuple[str, tuple[str, ...]], ...]

GRAPH_NAME = "model.onnx"
WEIGHTS_NAME = "model.onnx.data"
RECIPES = ("int8", "fp32")
NEEDED = ("onnx", "onnxruntime", "ml_dtypes", "threadpoolctl")
"""Modules that every export needs; what only some need is asked for where they need it."""
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
    check_modules()
    target = Path(output) if output is not None else default_output(source, recipe, reduce_range)
    check_output(target, force)
    checkpoint = open_checkpoint(source, revision)
    head = read_head(checkpoint)
    form = input_format(checkpoint, head.kind, separator)
    check_space(target, checkpoint, recipe)
    with _atomic_folder(target) as folder:
        shutil.copyfile(checkpoint.folder / TOKENIZER_NAME, folder / TOKENIZER_NAME)
        files = {TOKENIZER_NAME: _entry(folder / TOKENIZER_NAME)}
        manifest = _manifest(checkpoint, head, form, Recipe(recipe, reduce_range), files)
        manifest = _write_model(folder, manifest, checkpoint, head, progress)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    stamp_files(target, manifest)
    return target


def check_modules() -> None:
    """MissingExtraError that names every module an export needs and does not find."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise MissingExtraError("export", missing)


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
            f"the bundle needs {needed / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free; "
            "make room or choose an output folder on another disk"
        )


def _write_model(
    folder: Path, manifest: Manifest, checkpoint: Checkpoint, head: RewardHead, progress: Progress
) -> Manifest:
    """Write the graph and its weights, score the golden trajectories; return the manifest that tells of both."""
    encoder = Encoder(folder / TOKENIZER_NAME, manifest)
    golden = _encode(encoder, GOLDEN)
    if not golden:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has a context of {manifest.context_length} tokens; no golden trajectory fits"
        )
    calibration = _encode(encoder, CALIBRATION) if manifest.recipe.name == "int8" else []
    reference = ReferenceRun(checkpoint, [encoded.ids for *_, encoded in golden + calibration])
    weights = WeightFile(folder / WEIGHTS_NAME)
    try:
        graph = GraphWriter(weights)
        recipe = manifest.recipe
        linears: Linears = (
            Fp32Linears(graph) if recipe.name == "fp32" else Int8Linears(graph, reduce_range=recipe.reduce_range)
        )
        with progress(f"writing {recipe.name} layers", checkpoint.config.layers) as advance:
            for _ in write_graph(graph, checkpoint, head, linears, reference):
                advance(1)
        (folder / GRAPH_NAME).write_bytes(graph.model(edge_prm.__version__))
        files = {**manifest.files, WEIGHTS_NAME: weights.close(), GRAPH_NAME: _entry(folder / GRAPH_NAME)}
    finally:
        weights.abort()
    manifest = replace(manifest, files=files)
    with progress("scoring golden trajectories", len(golden)) as advance:
        scored = _bundle_rewards(Bundle(folder, manifest), [encoded for *_, encoded in golden], advance)
    references = [reference.rewards(head, index, encoded.read_at) for index, (*_, encoded) in enumerate(golden)]
    return _with_golden(manifest, golden, references, scored)


def _encode(encoder: Encoder, texts: Texts) -> list[tuple[str, tuple[str, ...], Encoded]]:
    """Encode our own texts; a model of a very short context gets fewer of their steps, and leaves out what is left."""
    fitting = []
    for prompt, steps in texts:
        for count in range(len(steps), 0, -1):
            with contextlib.suppress(ContextLengthError):
                fitting.append((prompt, steps[:count], encoder.encode(Trajectory.of(prompt, steps[:count]))))
                break
    return fitting


def _with_golden(
    manifest: Manifest,
    golden: list[tuple[str, tuple[str, ...], Encoded]],
    references: list[list[float]],
    scored: list[list[float]],
) -> Manifest:
    differences = np.abs(np.concatenate(references) - np.concatenate(scored))
    if not np.isfinite(differences).all():
        raise CheckpointError(f"checkpoint {manifest.source.name} gives rewards that are not finite")
    fidelity = Fidelity(
        reference="numpy fp32",
        rewards=len(differences),
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
        tolerance=TOLERANCES[manifest.recipe.name],
    )
    rows = zip(golden, references, scored, strict=True)
    return replace(
        manifest,
        fidelity=fidelity,
        golden=tuple(
            Golden(prompt, steps, text.sha256(), tuple(reference), tuple(rewards))
            for (prompt, steps, text), reference, rewards in rows
        ),
    )


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
            intermediate=config.intermediate,
        ),
        head=Head(head.kind, default_aggregate(head.kind)),
        input=form,
        context_length=config.context_length,
        recipe=recipe,
        files=files,
        golden=(),
    )


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256_of(path), path.stat().st_size)


@contextlib.contextmanager
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
