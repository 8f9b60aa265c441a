"""The linear layers of recipe `int8`: u8 activations times s8 weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import LayerInputs, Linear, concatenated
from edge_prm_export.decoder.rotate import block_size, hadamard, rotate_blocks
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues, Transform
from edge_prm_export.onnx.int8_products import Int8Products, Stored
from edge_prm_export.onnx.int8_rows import Quantized
from edge_prm_export.onnx.linears import FeedForward, Streams, Weight, counts, swiglu
from edge_prm_export.onnx.writer import GraphWriter
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.rows import REDUCED_WEIGHT_MAX, WEIGHT_MAX, quantize_rows

READ_SHARE = 0.7
"""Read positions have a stream of their own in this share of the layers, the last ones: on Qwen2.5-1.5B, less
than a third of what rounding does to rewards is in their rows in the layers before."""
GROUPS = (1 / 32, 1 / 8, 1 / 2)
"""Where SwiGLU's channels are cut into groups, the largest ones first: a row has a scale for each group."""
GROUPED_SHARE = 0.5
"""The share of the layers, the first ones, whose channels are in groups: on Qwen2.5-1.5B, four fifths of what rounding
`down`'s inputs does to rewards is in them."""


class Int8Linears:
    """Recipe `int8`: u8 activations times s8 weights, summed in 32-bit integers."""

    dtype = np.float32
    wide = ()

    def __init__(self, graph: GraphWriter, *, reduce_range: bool = False) -> None:
        """`reduce_range`: weights of seven bits."""
        self._graph = graph
        self._products = Int8Products(graph, REDUCED_WEIGHT_MAX if reduce_range else WEIGHT_MAX)

    def read_layers(self, layers: int) -> int:
        """Most layers: the rows of read positions, in two parts, cost little where texts have tens of tokens a step."""
        return max(1, round(READ_SHARE * layers))

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """Residual stream and values are rotated."""
        return (RotateValues(shapes), FoldNorms(), RotateResidual(shapes))

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`."""
        self._products.declare_counts(ids)
        shape = (decoder.shapes.vocabulary, decoder.shapes.hidden)
        return self.embedding(name, ids, decoder.embedding_blocks(), shape)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: LayerInputs) -> str:
        """With a hi/lo split, since attention's logits magnify an error in queries and keys."""
        products, (weight, bias) = self._products, concatenated(linears)
        stored = products.store(name, weight, GPTQ(inputs.attention, counts(inputs)))
        return products.sum_of_parts(name, products.quantize.normed(name, rows, hi_lo=True), stored, bias)

    def attention_output(self, name: str, rows: Streams, linear: Linear, inputs: LayerInputs) -> Streams:
        """hi only in the rows of all tokens: a lo part was measured to cost 4% of the time and to bring nothing that
        shows in rewards."""
        stored = self._products.store(name, linear.weight(), GPTQ(inputs.output, counts(inputs)))
        return self._products.scaled_products(name, rows, stored)

    def feed_forward(self, name: str, rows: Streams, weights: FeedForward) -> Streams:
        """A sum over groups of SwiGLU's channels.

        silu comes after `gate`, so row scales would cost a pass over all of `intermediate`: normed rows have one scale
        instead.
        """
        inputs = weights.inputs
        groups = _groups(inputs.down, GROUPS if weights.depth < GROUPED_SHARE else ())
        normed, gptq = self._products.join_normed(name, rows), GPTQ(inputs.feed_forward, counts(inputs))
        gates = self._store_outputs(f"{name}.gate", weights.gate, groups, gptq)
        ups = self._store_outputs(f"{name}.up", weights.up, groups, gptq)
        down, total = weights.down.weight(), Streams("")
        for index, (channels, gate, up) in enumerate(zip(groups, gates, ups, strict=True)):
            gate_out = self._products.products(f"{name}.gate.{index}", normed, gate)
            up_out = self._products.products(f"{name}.up.{index}", normed, up)
            spread = self._swiglu(f"{name}.{index}", gate_out, up_out, len(channels))
            block = block_size(len(channels))
            entering = GPTQ(rotate_blocks(np.take(inputs.down, channels, axis=1), block), counts(inputs))
            stored = self._products.store(f"{name}.down.{index}", rotate_blocks(down[:, channels], block), entering)
            part = self._products.scaled_products(f"{name}.down.{index}", spread, stored)
            total = self._add(f"{name}.sum.{index}", total, part) if index else part
        return total

    def _store_outputs(
        self, name: str, linear: Linear, groups: Sequence[npt.NDArray[np.intp]], gptq: GPTQ
    ) -> list[Stored]:
        """Groups of a weight's outputs. The weight is not held: one of an 8B model takes 235 MB in float32."""
        weight = linear.weight()
        return [
            self._products.store(f"{name}.{index}", weight[channels], gptq) for index, channels in enumerate(groups)
        ]

    def _swiglu(self, name: str, gate_out: Streams, up_out: Streams, width: int) -> Streams:
        """silu(gate_out) * up_out, rotated in blocks."""

        def spread(of: str, gate_rows: str) -> str:
            product = swiglu(self._graph, f"{name}{of}", gate_rows, up_out.of(of))
            return self._spread(f"{name}{of}", product, width)

        return gate_out.each(spread)

    def linear_dynamic(self, name: str, rows: str, weights: Mapping[str, Weight], *, hi_lo: bool = False) -> None:
        """`rows` without known statistics times each weight, the products under the weights' names.

        The rows are rotated in Hadamard blocks, get a scale each, and are quantized once for all weights.
        """
        quantized: Quantized | None = None
        for product, read in weights.items():
            weight = read()
            if quantized is None:
                spread = self._spread(name, rows, weight.shape[1])
                quantized = self._products.quantize.scaled(name, spread, hi_lo=hi_lo)
            stored = self._products.store(product, rotate_blocks(weight, block_size(weight.shape[1])), None)
            integers = self._products.sum_of_parts(f"{product}.integers", quantized, stored)
            self._graph.node("Mul", [integers, quantized.scales], product)

    def embedding(self, name: str, ids: str, blocks: Iterable[AnyFloat], shape: tuple[int, int]) -> str:
        """Int8 rows with a scale each: a quarter of the fp32 table, which nothing else needs."""
        graph = self._graph
        table = graph.stream(f"{name}.weight", np.int8, shape)
        scales = []
        for block in blocks:
            integers, scale = quantize_rows(block)
            table.write(integers)
            scales.append(scale)
        scale_table = graph.weight(f"{name}.scale", np.concatenate(scales)[:, None])
        integers_read = graph.node("Gather", [table.finish(), ids], f"{name}.int8", axis=0)
        scales_read = graph.node("Gather", [scale_table, ids], f"{name}.scales", axis=0)
        return graph.node("Mul", [graph.node("Cast", [integers_read], f"{name}.float", to=1), scales_read], name)

    def _add(self, name: str, total: Streams, part: Streams) -> Streams:
        return total.each(lambda of, rows: self._graph.node("Add", [rows, part.of(of)], f"{name}{of}"))

    def _spread(self, name: str, rows: str, width: int) -> str:
        """`rows` `[s, width]` with each block of values multiplied by a Hadamard matrix; a block of 1 stays."""
        block = block_size(width)
        if block == 1:
            return rows
        graph = self._graph
        in_blocks = graph.constant(f"blocks.{block}", [-1, block], np.int64)
        rotation = graph.weight(f"hadamard.{block}", hadamard(block).astype(np.float32))
        blocks = graph.node("Reshape", [rows, in_blocks], f"{name}.blocks")
        rotated = graph.node("MatMul", [blocks, rotation], f"{name}.blocks.spread")
        shape = graph.constant(f"rows.{width}", [-1, width], np.int64)
        return graph.node("Reshape", [rotated, shape], f"{name}.spread")


def _groups(products: AnyFloat, cuts: Sequence[float]) -> list[npt.NDArray[np.intp]]:
    """Channels of SwiGLU in groups, those with the largest values first; `products` `[tokens, channels]`.

    `cuts`: the shares of the channels where a group ends and the next begins, in whole Hadamard blocks. Without any,
    the channels stay in order.
    """
    count = products.shape[1]
    block = block_size(count)
    bounds = sorted({0, *(round(cut * count / block) * block for cut in cuts), count})
    if len(bounds) == 2:
        return [np.arange(count)]
    order = np.argsort(-np.abs(products).max(axis=0), kind="stable")
    return [order[start:end] for start, end in pairwise(bounds)]
