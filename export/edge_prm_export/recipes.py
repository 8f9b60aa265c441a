"""What a bundle can be exported as: options of an export -> recipes of the runtime's table.

A recipe of ONNX needs a row of `edge_prm.recipe.RECIPES` and Linears that write it; one of GGUF a row there and, where
llama.cpp's own quantizer does not write it, a row in DIRECT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_prm.errors import InputError
from edge_prm.extras import check_extra
from edge_prm.recipe import RECIPES as ALL
from edge_prm.recipe import Recipe
from edge_prm.source import name_of

EXPORTERS = ("auto", "native", "optimum")
EXPORT_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Writer:
    """What writes the weights for an engine: module and function, the extras it needs, and the bits for each value of
    the checkpoint that it holds on disk besides the bundle."""

    module: str
    extras: tuple[str, ...]
    scratch_bits: float = 0.0


WRITERS = {
    "onnx": Writer("edge_prm_export.onnx.decoder", ("export",)),
    "gguf": Writer("edge_prm_export.gguf.bundle", ("export", "gguf")),
    "optimum": Writer("edge_prm_export.optimum.trace", ("optimum",), scratch_bits=32),  # its graph in fp32
}
"""engine -> writer: its `write_model(job)` is called."""


@dataclass(frozen=True)
class GgufType:
    """A ggml type of weights: `direct` ones are written by this exporter, the others by llama.cpp's own quantizer."""

    bits: float
    direct: bool


DIRECT = ("F32", "F16", "BF16", "Q8_0")
GGUF_TYPES = {
    name.upper(): GgufType(recipe.bits, name.upper() in DIRECT)
    for (engine, name), recipe in ALL.items()
    if engine == "gguf"
}
ON_GPU = {"int8": "w8a16", "int4": "w4a16", "fp16": "fp16"}
"""Recipe -> the one with fp16 activations that an ONNX bundle for a GPU has."""
GGUF_RECIPES = {"int8": "Q8_0", "int4": "Q4_K_M", "fp16": "F16", "fp32": "F32"}
ONNX_RECIPES = tuple(name for engine, name in ALL if engine == "onnx")
RECIPES = tuple(dict.fromkeys((*ONNX_RECIPES, *GGUF_RECIPES)))
"""Names that an export takes as its recipe."""


def recipes_for(
    engine: str, recipe: str, reduce_range: bool, gguf_type: str | None, rotate: bool | None
) -> tuple[Recipe, ...]:
    """The recipes that a writer may choose from; InputError for options that do not go together."""
    if engine == "gguf":
        return _gguf_recipes(recipe, gguf_type, rotate, reduce_range)
    if gguf_type is not None or rotate is not None:
        raise InputError("gguf_type and rotate are options of a GGUF bundle; ask for one with --gguf")
    return (_onnx_recipe(engine, recipe, reduce_range),)


def _onnx_recipe(engine: str, name: str, reduce_range: bool) -> Recipe:
    if (engine, name) not in ALL:
        more = f"; {name} goes with --gguf" if name in GGUF_RECIPES else ""
        known = ", ".join(name for of, name in ALL if of == engine)
        raise InputError(f"recipe {name!r} is not known to ONNX; choose one of {known}{more}")
    recipe = ALL[engine, name]
    if reduce_range and not recipe.reducible:
        raise InputError(f"reduce_range goes with recipe int8; {name} has no 8-bit weights to reduce")
    return recipe.with_weights(reduce_range=reduce_range)


def _gguf_recipes(recipe: str, gguf_type: str | None, rotate: bool | None, reduce_range: bool) -> tuple[Recipe, ...]:
    """Where `rotate` is not given, both ways are tried for few bits. A recipe's name is the ggml type in lower case."""
    if reduce_range:
        raise InputError("reduce_range is for ONNX bundles: llama.cpp's kernels do not saturate; leave it out")
    if gguf_type is None and recipe not in GGUF_RECIPES:
        raise InputError(f"recipe {recipe!r} is not known; choose one of {', '.join(GGUF_RECIPES)}")
    name = (gguf_type or GGUF_RECIPES[recipe]).upper()
    if name not in GGUF_TYPES:
        raise InputError(f"gguf_type {gguf_type!r} is not known; choose one of {', '.join(GGUF_TYPES)}")
    plain = ALL["gguf", name.lower()]
    if rotate is not None:
        return (plain.with_weights(rotated=rotate),)
    return (plain,) if plain.bits >= 16 else (plain, plain.with_weights(rotated=True))


def on_device(recipe: str, device: str, gguf: bool) -> str:
    """The recipe for a device; InputError for one that no recipe is for."""
    if device not in EXPORT_DEVICES:
        raise InputError(f"device {device!r} is not known to export; choose one of {', '.join(EXPORT_DEVICES)}")
    if device == "cpu":
        return recipe
    if gguf:
        raise InputError("device is an option of ONNX bundles: a GGUF bundle runs on CPU and GPU; leave it out")
    if recipe not in ON_GPU:
        raise InputError(f"recipe {recipe!r} is for the CPU; for a GPU choose one of {', '.join(ON_GPU)}")
    return ON_GPU[recipe]


def for_engine(recipes: tuple[Recipe, ...], engine: str) -> tuple[Recipe, ...]:
    """The same recipes for another engine that reads the same files; InputError for one that it does not have."""
    if missing := [recipe.name for recipe in recipes if (engine, recipe.name) not in ALL]:
        known = ", ".join(name for of, name in ALL if of == engine)
        raise InputError(f"recipe {missing[0]!r} is not known to {engine}, which exports this decoder; choose {known}")
    return tuple(ALL[engine, recipe.name].with_weights(reduce_range=recipe.reduce_range) for recipe in recipes)


def check_modules(engine: str) -> None:
    """MissingExtraError that names every module an export needs that is not installed."""
    for extra in WRITERS[engine].extras:
        check_extra(extra)


def default_output(source: str, recipe: Recipe) -> Path:
    """A folder in the current one, named after checkpoint and recipe."""
    engine = "" if recipe.engine == "onnx" else f"-{recipe.engine}"
    return Path(f"{name_of(source)}{engine}-{recipe.name}" + ("-reduced" if recipe.reduce_range else ""))


def bits_on_disk(recipes: tuple[Recipe, ...]) -> float:
    """Bits for each weight that an export holds at its largest: bundles to choose between, and what is left over from
    steps in between."""
    engine = recipes[0].engine
    quantized = engine == "gguf" and not GGUF_TYPES[recipes[0].name.upper()].direct
    scratch = 16.0 if quantized else WRITERS[engine].scratch_bits  # llama.cpp's quantizer reads F16
    return sum(recipe.bits for recipe in recipes) + scratch
