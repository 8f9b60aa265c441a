"""Checkpoint -> bundle folder: all of it, or nothing.

Everything is written into a temporary folder next to the output, validated there, and renamed at the end. The weights
are written by the writer of the engine (see edge_prm_export.recipes.WRITERS).
"""

from __future__ import annotations

import importlib
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

import edge_prm
from edge_prm.bundle import stamp_files
from edge_prm.check import saturated, too_coarse
from edge_prm.encode import TOKENIZER_NAME, Encoder
from edge_prm.errors import InputError, MissingExtraError, UnsupportedArchitectureError
from edge_prm.manifest import (
    MANIFEST_NAME,
    Architecture,
    FileEntry,
    HeadSpec,
    Manifest,
    Provenance,
    Recipe,
    Source,
)
from edge_prm.notices import ToleranceWarning
from edge_prm.source import DEFAULT_SOURCE
from edge_prm_export.calibration.golden import encode_golden, with_golden
from edge_prm_export.calibration.texts import GOLDEN
from edge_prm_export.checkpoint.conventions import Given
from edge_prm_export.checkpoint.files import Checkpoint, open_checkpoint
from edge_prm_export.checkpoint.template import HeadAndFormat, head_and_format
from edge_prm_export.decoder.names import check_decoder
from edge_prm_export.job import ExportJob, ExportResult, file_entry
from edge_prm_export.output import atomic_folder, check_output, check_space, remove_leftovers
from edge_prm_export.progress import Progress, silent
from edge_prm_export.recipes import (
    EXPORTERS,
    WRITERS,
    bits_on_disk,
    check_modules,
    default_output,
    for_engine,
    on_device,
    recipes_for,
)


def export(
    source: str = DEFAULT_SOURCE,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str = "int8",
    device: str = "cpu",
    gguf: bool = False,
    gguf_type: str | None = None,
    rotate: bool | None = None,
    revision: str | None = None,
    reduce_range: bool = False,
    format: str | None = None,
    separator: str | None = None,
    between: str | None = None,
    after_step: str | None = None,
    token_pair: tuple[str, str] | None = None,
    exporter: str = "auto",
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Export a checkpoint to an ONNX or GGUF bundle and return the bundle's folder.

    `source`: a folder, a hub id, or the embedded `demo` or `demo-reference` (`./demo` for a folder of that name; a
    folder of the hub's cache is named after its repository). `output`: by default a folder in the current one, named
    after checkpoint and recipe. `device`: `cuda` gives an ONNX bundle fp16 activations. `reduce_range`: 7-bit weights,
    for processors whose 8-bit kernels saturate. `gguf`: a bundle for llama.cpp; `gguf_type` is one of its types in
    place of a recipe, `rotate` rotates the residual stream before quantization (by default both ways are tried, and
    what is closer to full precision is kept). `exporter`: `native` writes Qwen2, Qwen3, Llama and Mistral without
    torch, `optimum` any decoder with it; `auto` takes the native one where it can.

    `format`: the name of the checkpoint's convention, a key of `checkpoint.conventions.CONVENTIONS`; without it the
    checkpoint's head decides. The next options override its pieces. `token_pair`: (good, bad), pieces of the vocabulary
    whose probabilities are the judgement, for checkpoints without a head of their own; `separator` is then the tag that
    closes a step (without it, steps are turns of the chat template), `between` the text between prompt and steps,
    `after_step` the text after each tag but the last. Else `separator` is the text or token that closes a step.

    Raises CheckpointError (also for a bundle in full precision that is outside its tolerance), OutputExistsError (also
    for an output that appears while the export runs, unless `force`), ExportError (disk full, not writable, not enough
    memory) or MissingExtraError; nothing half-written is left. What a killed export to the same output left is removed.
    Warns with a ToleranceWarning, and keeps the bundle, when a quantized one is outside its tolerance.
    """
    engine = _engine(gguf, exporter)
    recipes = recipes_for(engine, on_device(recipe, device, gguf), reduce_range, gguf_type, rotate)
    check_modules(engine)
    target = Path(output) if output is not None else default_output(source, recipes[0])
    remove_leftovers(target)
    check_output(target, force)
    checkpoint = open_checkpoint(source, revision, native=gguf or exporter == "native")
    if exporter == "auto" and not gguf:
        recipes = for_engine(recipes, choose_engine(checkpoint))
    if has_family(checkpoint):  # transformers too would leave out tensors that it does not use
        check_decoder(checkpoint)
    judge = head_and_format(checkpoint, Given(format, separator, between, after_step, token_pair))
    check_space(target, needed_bytes(checkpoint, recipes))
    with atomic_folder(target, replace=force) as folder:
        manifest = _write(folder, recipes, checkpoint, judge, progress)
    if manifest.fidelity is not None and not manifest.fidelity.within_tolerance:
        warnings.warn(f"{target}: {too_coarse(manifest, saturated(manifest))}", ToleranceWarning, stacklevel=2)
    return target


def _engine(gguf: bool, exporter: str) -> str:
    """The engine that options ask for; `auto` may still take optimum for a decoder that is not native."""
    if exporter not in EXPORTERS:
        raise InputError(f"exporter {exporter!r} is not known; choose one of {', '.join(EXPORTERS)}")
    if gguf and exporter == "optimum":
        raise InputError("optimum writes ONNX bundles; leave out --gguf or --exporter optimum")
    return "gguf" if gguf else "optimum" if exporter == "optimum" else "onnx"


def _write(
    folder: Path,
    recipes: tuple[Recipe, ...],
    checkpoint: Checkpoint,
    judge: HeadAndFormat,
    progress: Progress,
) -> Manifest:
    """Write all files of a bundle into an empty folder, score the golden texts with it, and return its manifest."""
    (folder / TOKENIZER_NAME).write_bytes(checkpoint.file(TOKENIZER_NAME))
    files = {TOKENIZER_NAME: file_entry(folder / TOKENIZER_NAME)}
    manifest = describe(checkpoint, judge, recipes[0], files)
    encoder = Encoder(folder / TOKENIZER_NAME, manifest)
    golden = encode_golden(encoder, GOLDEN, manifest)
    writer = importlib.import_module(WRITERS[recipes[0].engine].module)
    written: ExportResult = writer.write_model(
        ExportJob(folder, recipes, manifest, checkpoint, judge.head, encoder, golden, progress)
    )
    manifest = replace(manifest, recipe=written.recipe, files={**files, **written.files})
    manifest = with_golden(folder, manifest, golden, written, progress)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    stamp_files(folder, manifest)
    return manifest


def has_family(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's decoder is of a family that the native exporter knows."""
    try:
        return bool(checkpoint.spec)
    except UnsupportedArchitectureError:
        return False


def choose_engine(checkpoint: Checkpoint) -> str:
    """`onnx` where the native exporter knows the model, `optimum` where not and it is installed."""
    try:
        _ = checkpoint.spec
    except UnsupportedArchitectureError as error:
        try:
            check_modules("optimum")
        except MissingExtraError as missing:
            raise UnsupportedArchitectureError(
                checkpoint.name, error.what, f"{error.supported} by itself, and other decoders with optimum ({missing})"
            ) from None
        return "optimum"
    return "onnx"


def needed_bytes(checkpoint: Checkpoint, recipes: tuple[Recipe, ...]) -> int:
    """Bytes of disk that an export takes at its largest."""
    values = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.tensor_names if name != "lm_head.weight")
    return int(values * bits_on_disk(recipes) / 8 * 1.03) + (64 << 20)


def describe(
    checkpoint: Checkpoint,
    judge: HeadAndFormat,
    recipe: Recipe,
    files: dict[str, FileEntry],
) -> Manifest:
    """The manifest of a bundle before its weights and golden trajectories are written."""
    config, head = checkpoint.config, judge.head
    source = Source(checkpoint.name, checkpoint.revision, checkpoint.sha256())
    return Manifest(
        provenance=Provenance(source, edge_prm.__version__, judge.convention),
        architecture=Architecture(
            model_type=checkpoint.model_type,
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary,
            intermediate=config.intermediate,
        ),
        head=HeadSpec(head.kind, head.default_aggregate, head.tokens),
        input=judge.format,
        context_length=config.context_length,
        recipe=recipe,
        files=files,
    )
