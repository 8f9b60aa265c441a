"""What a bundle can be exported as: for each backend its recipes, and how far each may be from full precision."""

from __future__ import annotations

from dataclasses import dataclass

from edge_prm.errors import InputError
from edge_prm.manifest import Recipe


@dataclass(frozen=True)
class GgufType:
    """A type of llama.cpp's: `direct` ones are written as they are, the others by llama.cpp's own quantizer.

    `bits` per weight of a linear layer, block scales included. `tolerance`: see `TOLERANCES`.
    """

    bits: float
    tolerance: float
    direct: bool = False


GGUF_TYPES = {
    "F32": GgufType(32, 0.02, direct=True),
    "F16": GgufType(16, 0.02, direct=True),
    "BF16": GgufType(16, 0.06, direct=True),
    "Q8_0": GgufType(8.5, 0.06, direct=True),
    "Q6_K": GgufType(6.6, 0.10),
    "Q5_K_M": GgufType(5.7, 0.15),
    "Q5_K_S": GgufType(5.5, 0.15),
    "Q5_1": GgufType(6.0, 0.15),
    "Q5_0": GgufType(5.5, 0.15),
    "Q4_K_M": GgufType(4.9, 0.25),
    "Q4_K_S": GgufType(4.6, 0.25),
    "Q4_1": GgufType(5.0, 0.25),
    "Q4_0": GgufType(4.5, 0.25),
    "IQ4_NL": GgufType(4.5, 0.25),
    "IQ4_XS": GgufType(4.3, 0.25),
    "Q3_K_L": GgufType(4.3, 0.40),
    "Q3_K_M": GgufType(3.9, 0.40),
    "Q3_K_S": GgufType(3.5, 0.40),
    "Q2_K": GgufType(3.2, 0.60),
}
GGUF_RECIPES = {"int8": "Q8_0", "int4": "Q4_K_M", "fp16": "F16", "fp32": "F32"}
ONNX_RECIPES = ("int8", "fp32")
RECIPES = tuple(dict.fromkeys((*ONNX_RECIPES, *GGUF_RECIPES)))
EXPORTERS = ("auto", "native", "optimum")
EXACT = ("fp32",)
"""Recipes that round nothing: outside its tolerance, such a bundle is a wrong graph and not a coarse recipe."""
TOLERANCES = {"int8": 0.06, "fp32": 1e-3, **{name.lower(): type_.tolerance for name, type_ in GGUF_TYPES.items()}}
"""Largest difference of a golden reward from full precision that a recipe may give on any device: several times what
its rounding alone gives, far below what saturating or broken kernels give. GGUF has a KV cache in fp16, even as F32."""
OPTIMUM_TOLERANCES = {"int8": 0.12, "fp32": 1e-3}
"""Its int8 is coarser: no rotation of the residual stream, no error compensation."""
STREAM_TOLERANCES = {"onnx": 0.0, "gguf": 0.02, "optimum": 0.02}
"""Largest difference of a golden reward step by step from one shot. Above zero where an engine multiplies runs of
different lengths with different kernels, and a last bit that differs can flip an 8-bit rounding behind it."""


def tolerance_of(backend: str, recipe: Recipe) -> float:
    return (OPTIMUM_TOLERANCES if backend == "optimum" else TOLERANCES)[recipe.name]


def onnx_recipes(recipe: str, reduce_range: bool) -> tuple[Recipe, ...]:
    """Check the options of an ONNX bundle; InputError that names the right ones."""
    if recipe not in ONNX_RECIPES:
        more = f"; {recipe} goes with --gguf" if recipe in GGUF_RECIPES else ""
        raise InputError(f"recipe {recipe!r} is not known to ONNX; choose one of {', '.join(ONNX_RECIPES)}{more}")
    if reduce_range and recipe != "int8":
        raise InputError(f"reduce_range goes with recipe int8; {recipe} has no 8-bit weights to reduce")
    return (Recipe(recipe, reduce_range),)


def gguf_recipes(recipe: str, gguf_type: str | None, rotate: bool | None, reduce_range: bool) -> tuple[Recipe, ...]:
    """Check the options of a GGUF bundle; without a word about `rotate`, both ways of few bits are to be tried.

    A recipe's name is the ggml type, small.
    """
    if reduce_range:
        raise InputError("reduce_range is for ONNX bundles: llama.cpp's kernels do not saturate; leave it out")
    if gguf_type is None and recipe not in GGUF_RECIPES:
        raise InputError(f"recipe {recipe!r} is not known; choose one of {', '.join(GGUF_RECIPES)}")
    name = (gguf_type or GGUF_RECIPES[recipe]).upper()
    if name not in GGUF_TYPES:
        raise InputError(f"gguf_type {gguf_type!r} is not known; choose one of {', '.join(GGUF_TYPES)}")
    if rotate is not None:
        return (Recipe(name.lower(), rotated=rotate),)
    plain, rotated = Recipe(name.lower()), Recipe(name.lower(), rotated=True)
    return (plain,) if GGUF_TYPES[name].bits >= 16 else (plain, rotated)
