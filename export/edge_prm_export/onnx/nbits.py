"""The linear layers of weight-only recipes: integers of 4 or 8 bits in blocks, floating point where they multiply.

Most weights have the recipe's bits. Those that carry most of the error for their size have 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import Linear, concatenated
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues, Transform
from edge_prm_export.onnx.linears import FeedForward, swiglu
from edge_prm_export.onnx.writer import MS, GraphWriter
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.nbits import block_for, block_scales, grid_of, nearest, packed

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations are rounded to 8 bits, in blocks as the weights are. 0 rounds nothing."""


@dataclass(frozen=True)
class Blocks:
    """How a weight is stored: integers of `bits`, a scale for each block of `block` values."""

    bits: int
    block: int


@dataclass(frozen=True)
class NBitsChoice:
    """Bits of each weight of a recipe: `linear` of most, `wide` of those that carry the error, `embedding`."""

    linear: Blocks
    wide: Blocks
    embedding: Blocks


class NBitsLinears:
    """Weight-only linear layers."""

    def __init__(
        self, graph: GraphWriter, choice: NBitsChoice, dtype: type[np.floating[Any]], accuracy_level: int = 0
    ) -> None:
        """`dtype`: of activations, scales and products. `accuracy_level`: see INT8_ACTIVATIONS."""
        self._graph = graph
        self._choice = choice
        self._accuracy_level = accuracy_level
        self.dtype = dtype
        self.wide: list[str] = []

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """Residual stream and values are rotated: no weight and no activation is far larger than the others."""
        return (RotateValues(shapes), FoldNorms(), RotateResidual(shapes))

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`; only the rows that are read become floating point."""
        graph, shapes = self._graph, decoder.shapes
        bits, block = self._choice.embedding.bits, block_for(shapes.hidden, self._choice.embedding.block)
        table = graph.stream(f"{name}.weight", np.uint8, (shapes.vocabulary, shapes.hidden * bits // 8))
        all_scales = []
        for rows in decoder.embedding_blocks():
            scales = block_scales(rows, bits, block, self.dtype)
            table.write(packed(nearest(rows, scales, bits, block), bits, block).reshape(len(rows), -1))
            all_scales.append(scales.astype(self.dtype))
        scale_table = graph.weight(f"{name}.scale", np.concatenate(all_scales))
        layout = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
        inputs = [table.finish(), ids, scale_table]
        return graph.node("GatherBlockQuantized", inputs, name, domain=MS, **layout)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: AnyFloat) -> str:
        """Wide: attention's logits magnify an error in queries and keys, and these weights are few."""
        weight, bias = concatenated(linears)
        return self._multiply(name, rows, weight, GPTQ(inputs), self._choice.wide, bias)

    def attention_output(self, name: str, rows: str, linear: Linear, inputs: AnyFloat) -> str:
        """Wide, since it is small."""
        return self._multiply(name, rows, linear.weight(), GPTQ(inputs), self._choice.wide)

    def feed_forward(self, name: str, rows: str, weights: FeedForward) -> str:
        """`down` is wide in some layers."""
        shared = GPTQ(weights.inputs.feed_forward)
        narrow = self._choice.linear
        gate_out = self._multiply(f"{name}.gate", rows, weights.gate.weight(), shared, narrow)
        up_out = self._multiply(f"{name}.up", rows, weights.up.weight(), shared, narrow)
        product = swiglu(self._graph, name, gate_out, up_out)
        down = self._choice.wide if has_wide_down(weights.index, weights.layers) else narrow
        return self._multiply(f"{name}.down", product, weights.down.weight(), GPTQ(weights.inputs.down), down)

    def _multiply(
        self, name: str, rows: str, weight: AnyFloat, gptq: GPTQ, stored: Blocks, bias: AnyFloat | None = None
    ) -> str:
        """rows @ weight.T + bias, the weight rounded by GPTQ to the grid of its blocks."""
        graph = self._graph
        if stored.bits > self._choice.linear.bits:
            self.wide.append(name)
        bits, block = stored.bits, block_for(weight.shape[1], stored.block)
        scales = block_scales(weight, bits, block, self.dtype)
        integers = gptq.quantize_to_grid(weight, grid_of(scales, bits, block)).T
        inputs = [
            rows,
            graph.weight(f"{name}.weight", packed(integers, bits, block)),
            graph.weight(f"{name}.weight.scale", scales.astype(self.dtype)),
        ]
        layout = {"K": weight.shape[1], "N": weight.shape[0], "bits": bits, "block_size": block}
        if self._accuracy_level:
            layout["accuracy_level"] = self._accuracy_level
        if bias is None:
            return graph.node("MatMulNBits", inputs, name, domain=MS, **layout)
        # not the operator's own bias: on CUDA some versions of ONNX Runtime refuse it
        product = graph.node("MatMulNBits", inputs, f"{name}.product", domain=MS, **layout)
        return graph.node("Add", [product, graph.weight(f"{name}.bias", bias.astype(self.dtype))], name)


def has_wide_down(index: int, layers: int) -> bool:
    """Whether layer `index` is in the first or last eighth, or every third of the others (as in llama.cpp's Q4_K_M)."""
    eighth = layers // 8
    return index < eighth or index >= layers - eighth or (index - eighth) % 3 == 2
