"""Checkpoint -> bundle folder: all of it, or nothing.

Everything is written into a temporary folder next to the output, tried there, and renamed at the end. What is
written is the business of `to_onnx` and `gguf_bundle`, and of `optimum_export` for what neither knows.
"""

from __future__ import annotations

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
from edge_prm.extras import check_extra
from edge_prm.head import Head
from edge_prm.manifest import MANIFEST_NAME, Architecture, FileEntry, HeadSpec, InputFormat, Manifest, Recipe, Source
from edge_prm.notices import ToleranceWarning
from edge_prm.source import DEFAULT_SOURCE, name_of
from edge_prm_export.calibration.golden import encode_golden, with_golden
from edge_prm_export.calibration.texts import GOLDEN
from edge_prm_export.checkpoint.conventions import Given
from edge_prm_export.checkpoint.files import Checkpoint, open_checkpoint
from edge_prm_export.checkpoint.template import head_and_format
from edge_prm_export.decoder.names import check_decoder
from edge_prm_export.gguf import bundle as gguf_bundle
from edge_prm_export.job import ExportJob, file_entry
from edge_prm_export.onnx import decoder as to_onnx
from edge_prm_export.optimum import trace as optimum_export
from edge_prm_export.output import atomic_folder, check_output, check_space, remove_leftovers
from edge_prm_export.progress import Progress, silent
from edge_prm_export.recipes import EXPORTERS, GGUF_TYPES, gguf_recipes, onnx_recipes

WRITERS = {"onnx": to_onnx.write_model, "gguf": gguf_bundle.write_model, "optimum": optimum_export.write_model}
EXTRAS = {"onnx": ("export",), "gguf": ("export", "gguf"), "optimum": ("optimum",)}
"""backend -> extras that its exports need."""


def export(
    source: str = DEFAULT_SOURCE,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str = "int8",
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
    after checkpoint and recipe. `reduce_range`: 7-bit weights, for processors whose 8-bit kernels saturate. `gguf`: a
    bundle for llama.cpp; `gguf_type` is one of its types in place of a recipe, `rotate` rotates the residual stream
    before quantization (by default both ways are tried, and what is closer to full precision is kept). `exporter`:
    `native` writes Qwen2, Qwen3, Llama and Mistral without torch, `optimum` any decoder with it; `auto` takes the
    native one where it can.

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
    if not gguf and (gguf_type is not None or rotate is not None):
        raise InputError("gguf_type and rotate are options of a GGUF bundle; ask for one with --gguf")
    if exporter not in EXPORTERS:
        raise InputError(f"exporter {exporter!r} is not known; choose one of {', '.join(EXPORTERS)}")
    if gguf and exporter == "optimum":
        raise InputError("optimum writes ONNX bundles; leave out --gguf or --exporter optimum")
    backend = "gguf" if gguf else "optimum" if exporter == "optimum" else "onnx"
    recipes = gguf_recipes(recipe, gguf_type, rotate, reduce_range) if gguf else onnx_recipes(recipe, reduce_range)
    check_modules(backend)
    target = Path(output) if output is not None else default_output(source, backend, recipes[0])
    remove_leftovers(target)
    check_output(target, force)
    checkpoint = open_checkpoint(source, revision, native=gguf or exporter == "native")
    if exporter == "auto" and not gguf:
        backend = choose_backend(checkpoint)
    if has_family(checkpoint):  # transformers too would leave out tensors that it does not use
        check_decoder(checkpoint)
    head, form = head_and_format(checkpoint, Given(format, separator, between, after_step, token_pair))
    check_space(target, needed_bytes(checkpoint, backend, recipes))
    with atomic_folder(target, replace=force) as folder:
        (folder / TOKENIZER_NAME).write_bytes(checkpoint.file(TOKENIZER_NAME))
        files = {TOKENIZER_NAME: file_entry(folder / TOKENIZER_NAME)}
        manifest = describe(checkpoint, head, form, backend, recipes[0], files)
        encoder = Encoder(folder / TOKENIZER_NAME, manifest)
        golden = encode_golden(encoder, GOLDEN, manifest)
        written = WRITERS[backend](ExportJob(folder, recipes, manifest, checkpoint, head, encoder, golden, progress))
        manifest = replace(manifest, recipe=written.recipe, files={**files, **written.files})
        manifest = with_golden(folder, manifest, golden, written, progress)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        stamp_files(folder, manifest)
    if manifest.fidelity is not None and not manifest.fidelity.within_tolerance:
        warnings.warn(f"{target}: {too_coarse(manifest, saturated(manifest))}", ToleranceWarning, stacklevel=2)
    return target


def has_family(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's decoder is of a family that the native exporter knows."""
    try:
        return bool(checkpoint.spec)
    except UnsupportedArchitectureError:
        return False


def choose_backend(checkpoint: Checkpoint) -> str:
    """The native exporter's backend where it knows the model, optimum's where not and it is installed."""
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


def check_modules(backend: str) -> None:
    """MissingExtraError that names every module an export needs and does not find."""
    for extra in EXTRAS[backend]:
        check_extra(extra)


def default_output(source: str, backend: str, recipe: Recipe) -> Path:
    """A folder in the current one, named after checkpoint and recipe."""
    kind = "" if backend == "onnx" else f"-{backend}"
    return Path(f"{name_of(source)}{kind}-{recipe.name}" + ("-reduced" if recipe.reduce_range else ""))


def needed_bytes(checkpoint: Checkpoint, backend: str, recipes: tuple[Recipe, ...]) -> int:
    """Disk that an export takes at its largest: bundles to choose between, and the input of llama.cpp's quantizer."""
    values = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.tensor_names if name != "lm_head.weight")
    if backend != "gguf":
        bits = 32.0 if recipes[0].name == "fp32" else 8.0
        bits += 32.0 * (backend == "optimum")  # its graph in fp32 lies there until it is rewritten
    else:
        type_ = GGUF_TYPES[recipes[0].name.upper()]
        bits = len(recipes) * type_.bits + (0 if type_.direct else 16)
    return int(values * bits / 8 * 1.03) + (64 << 20)


def describe(
    checkpoint: Checkpoint,
    head: Head,
    form: InputFormat,
    backend: str,
    recipe: Recipe,
    files: dict[str, FileEntry],
) -> Manifest:
    """The manifest of a bundle before its weights and golden trajectories are there."""
    config = checkpoint.config
    return Manifest(
        edge_prm_version=edge_prm.__version__,
        backend=backend,
        source=Source(checkpoint.name, checkpoint.revision, checkpoint.sha256()),
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
        input=form,
        context_length=config.context_length,
        recipe=recipe,
        files=files,
        golden=(),
    )
