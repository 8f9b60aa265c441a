"""Recipe -> what writes its linear layers. A new recipe of ONNX bundles is one row here and one in edge_prm.recipe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_prm.recipe import Recipe
from edge_prm_export.onnx.floats import FloatLinears
from edge_prm_export.onnx.int8 import Int8Linears
from edge_prm_export.onnx.linears import Linears
from edge_prm_export.onnx.nbits import INT8_ACTIVATIONS, NBitsChoice, NBitsLinears
from edge_prm_export.onnx.writer import GraphWriter
from edge_prm_export.quantize.nbits import Blocks


def _eight_bits(recipe: Recipe) -> NBitsChoice:
    blocks = Blocks(8, recipe.weights.group)
    return NBitsChoice(linear=blocks, wide=blocks, embedding=blocks)


def four_bits(recipe: Recipe) -> NBitsChoice:
    """The bits of each weight of a recipe of four bits.

    With blocks of 64 (4 bits) or of 128 (8 bits), the CPU's kernels for AVX512-VNNI give a row other bits when the
    number of rows is odd (ONNX Runtime 1.32), so the blocks are smaller.
    """
    linear = Blocks(4, recipe.weights.group)
    return NBitsChoice(linear=linear, wide=Blocks(8, 64), embedding=Blocks(4, 64), wide_share=0.125)


LINEARS: dict[str, Callable[[GraphWriter, Recipe], Linears]] = {
    "fp32": lambda graph, recipe: FloatLinears(graph),
    "fp16": lambda graph, recipe: FloatLinears(graph, np.float16),
    "int8": lambda graph, recipe: Int8Linears(graph, reduce_range=recipe.reduce_range),
    "w8a16": lambda graph, recipe: NBitsLinears(graph, _eight_bits(recipe), np.float16),
    "int4": lambda graph, recipe: NBitsLinears(graph, four_bits(recipe), np.float32, INT8_ACTIVATIONS),
    "w4a16": lambda graph, recipe: NBitsLinears(graph, four_bits(recipe), np.float16),
}


def linears_of(graph: GraphWriter, recipe: Recipe) -> Linears:
    """What writes the linear layers of a recipe into `graph`."""
    return LINEARS[recipe.name](graph, recipe)
