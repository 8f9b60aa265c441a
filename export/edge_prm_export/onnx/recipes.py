"""Recipe -> what writes its linear layers. A new recipe of ONNX bundles is one row here and one in edge_prm.recipe."""

from __future__ import annotations

from collections.abc import Callable

from edge_prm.recipe import Recipe
from edge_prm_export.onnx.fp32 import Fp32Linears
from edge_prm_export.onnx.int8 import Int8Linears
from edge_prm_export.onnx.linears import Linears
from edge_prm_export.onnx.writer import GraphWriter

LINEARS: dict[str, Callable[[GraphWriter, Recipe], Linears]] = {
    "fp32": lambda graph, recipe: Fp32Linears(graph),
    "int8": lambda graph, recipe: Int8Linears(graph, reduce_range=recipe.reduce_range),
}


def linears_of(graph: GraphWriter, recipe: Recipe) -> Linears:
    """What writes the linear layers of a recipe into `graph`."""
    return LINEARS[recipe.name](graph, recipe)
