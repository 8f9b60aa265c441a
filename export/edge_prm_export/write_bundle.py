"""Checkpoint -> bundle folder: all of it, or nothing.

Everything is written into a temporary folder beside the output, verified there, and renamed at the end. What is written
is the business of `to_onnx` and `to_gguf`, and of `optimum_export` for what neither knows.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

import edge_prm
from edge_prm.aggregate import default_aggregate
from edge_prm.bundle import stamp_files
from edge_prm.encode import TOKENIZER_NAME, Encoder
from edge_prm.errors import InputError, MissingExtraError
from edge_prm.manifest import MANIFEST_NAME, Architecture, FileEntry, Head, InputFormat, Manifest, Recipe, Source
from edge_prm.source import DEFAULT_SOURCE
from edge_prm_export import to_gguf, to_onnx
from edge_prm_export.atomic import atomic_folder, check_output, check_space
from edge_prm_export.checkpoint import Checkpoint, open_checkpoint
from edge_prm_export.golden import encode_golden, entry_of, with_golden
from edge_prm_export.head import RewardHead, read_head
from edge_prm_export.progress import Progress, silent
from edge_prm_export.recipes import GGUF_TYPES, gguf_recipes, onnx_recipes
from edge_prm_export.template import input_format
from edge_prm_export.texts import GOLDEN

WRITERS = {"onnx": to_onnx.write_model, "gguf": to_gguf.write_model}
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "onnx": {"export": ("onnx", "onnxruntime", "ml_dtypes", "threadpoolctl")},
    "gguf": {"export": ("gguf", "ml_dtypes"), "gguf": ("llama_cpp",)},
}
"""backend -> extra -> modules that its exports need; what only some need is asked for where they need it."""


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
    separator: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Export a checkpoint to an ONNX or GGUF bundle and return the bundle's folder.

    `source`: a folder, a hub id, `demo` or `demo-reference`. `output`: by default a folder in the current one, named
    after checkpoint and recipe. `reduce_range`: 7-bit weights, for processors whose 8-bit kernels saturate. `gguf`: a
    bundle for llama.cpp; `gguf_type` is one of its types in place of a recipe, `rotate` rotates the residual stream
    before quantization (by default both ways are tried, and what is closer to full precision is kept). Raises
    CheckpointError, OutputExistsError, ExportError (disk full, not writable) or MissingExtraError; nothing
    half-written is left behind.
    """
    if not gguf and (gguf_type is not None or rotate is not None):
        raise InputError("gguf_type and rotate are options of a GGUF bundle; ask for one with --gguf")
    backend = "gguf" if gguf else "onnx"
    recipes = gguf_recipes(recipe, gguf_type, rotate, reduce_range) if gguf else onnx_recipes(recipe, reduce_range)
    check_modules(backend)
    target = Path(output) if output is not None else default_output(source, backend, recipes[0])
    check_output(target, force)
    checkpoint = open_checkpoint(source, revision)
    head = read_head(checkpoint)
    form = input_format(checkpoint, head.kind, separator)
    check_space(target, needed_bytes(checkpoint, backend, recipes))
    with atomic_folder(target) as folder:
        shutil.copyfile(checkpoint.folder / TOKENIZER_NAME, folder / TOKENIZER_NAME)
        files = {TOKENIZER_NAME: entry_of(folder / TOKENIZER_NAME)}
        manifest = describe(checkpoint, head, form, backend, recipes[0], files)
        encoder = Encoder(folder / TOKENIZER_NAME, manifest)
        golden = encode_golden(encoder, GOLDEN, manifest)
        written = WRITERS[backend](folder, recipes, manifest, checkpoint, head, encoder, golden, progress)
        manifest = replace(manifest, recipe=written.recipe, files={**files, **written.files})
        manifest = with_golden(folder, manifest, golden, written, progress)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    stamp_files(target, manifest)
    return target


def check_modules(backend: str) -> None:
    """MissingExtraError that names every module an export needs and does not find."""
    for extra, modules in NEEDED[backend].items():
        if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
            raise MissingExtraError(extra, missing)


def default_output(source: str, backend: str, recipe: Recipe) -> Path:
    name = Path(source).resolve().name if Path(source).is_dir() else source.rsplit("/", 1)[-1]
    kind = "" if backend == "onnx" else f"-{backend}"
    return Path(f"{name}{kind}-{recipe.name}" + ("-reduced" if recipe.reduce_range else ""))


def needed_bytes(checkpoint: Checkpoint, backend: str, recipes: tuple[Recipe, ...]) -> int:
    """Disk that an export takes at its largest: bundles to choose between, and the input of llama.cpp's quantizer."""
    values = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.tensor_names if name != "lm_head.weight")
    if backend == "onnx":
        bits = 32.0 if recipes[0].name == "fp32" else 8.0
    else:
        type_ = GGUF_TYPES[recipes[0].name.upper()]
        bits = len(recipes) * type_.bits + (0 if type_.direct else 16)
    return int(values * bits / 8 * 1.03) + (64 << 20)


def describe(
    checkpoint: Checkpoint,
    head: RewardHead,
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
