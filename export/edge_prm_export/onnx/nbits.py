"""The linear layers of weight-only recipes: integers of 4 or 8 bits in blocks, floating point where they multiply.

Most weights have the recipe's bits. Those that carry most of the error for their size have 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.arrays import AnyFloat, UInt8
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import Linear, concatenated
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues, Transform
from edge_prm_export.onnx.linears import FeedForward, swiglu
from edge_prm_export.onnx.writer import MS, GraphWriter
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.nbits import Blocks, Scales, scales_of
from edge_prm_export.quantize.rows import of_unit_size

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations are rounded to 8 bits, in blocks as the weights are. 0 rounds nothing."""


@dataclass(frozen=True)
class NBitsChoice:
    """Bits of each weight of a recipe: `linear` of most, `wide` of those that carry the error, `embedding`."""

    linear: Blocks
    wide: Blocks
    embedding: Blocks


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A weight as it is stored: `integers` uint8 `[out, in]`."""

    scales: Scales
    integers: UInt8


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
        blocks = self._choice.embedding.fitting(shapes.hidden)
        table = graph.stream(f"{name}.weight", np.uint8, (shapes.vocabulary, shapes.hidden * blocks.bits // 8))
        scales = []
        for rows in decoder.embedding_blocks():
            found = scales_of(rows, blocks, np.float16)
            table.write(found.packed(found.nearest(rows)).reshape(len(rows), -1))
            scales.append(found.scales.astype(np.float16))
        layout = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.block, "bits": blocks.bits}
        inputs = [table.finish(), ids, self._scales(f"{name}.scale", np.concatenate(scales))]
        return graph.node("GatherBlockQuantized", inputs, name, domain=MS, **layout)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: AnyFloat) -> str:
        """Wide: attention's logits magnify an error in queries and keys, and these weights are few."""
        weight, bias = concatenated(linears)
        return self._multiply(name, rows, self._compensated(weight, GPTQ(inputs), self._choice.wide), bias)

    def attention_output(self, name: str, rows: str, linear: Linear, inputs: AnyFloat) -> str:
        """Wide, since it is small."""
        return self._multiply(name, rows, self._compensated(linear.weight(), GPTQ(inputs), self._choice.wide))

    def feed_forward(self, name: str, rows: str, weights: FeedForward) -> str:
        """`down` is wide in some layers."""
        shared = GPTQ(weights.inputs.feed_forward)
        narrow = self._choice.linear
        gate_out = self._multiply(f"{name}.gate", rows, self._compensated(weights.gate.weight(), shared, narrow))
        up_out = self._multiply(f"{name}.up", rows, self._compensated(weights.up.weight(), shared, narrow))
        product = swiglu(self._graph, name, gate_out, up_out)
        blocks = self._choice.wide if has_wide_down(weights.index, weights.layers) else narrow
        down = self._weighted(weights.down.weight(), weights.inputs.down, blocks)
        return self._multiply(f"{name}.down", product, down)

    def _compensated(self, weight: AnyFloat, gptq: GPTQ, blocks: Blocks) -> _Rounded:
        """Rounded by GPTQ: the channels of normed rows are correlated, so that one makes up for another."""
        scales = scales_of(weight, blocks.fitting(weight.shape[1]), np.float16)
        return _Rounded(scales, gptq.quantize_to_grid(weight, scales.grid()).T)

    def _weighted(self, weight: AnyFloat, inputs: AnyFloat, blocks: Blocks) -> _Rounded:
        """Each weight rounded to the nearest value, the scales chosen for the channels that are large.

        SwiGLU's channels are hardly correlated, and few of them are large at once: GPTQ makes these rows worse.
        """
        importance = (of_unit_size(inputs) ** 2).mean(axis=0)
        scales = scales_of(weight, blocks.fitting(weight.shape[1]), np.float16, importance)
        return _Rounded(scales, scales.nearest(weight))

    def _multiply(self, name: str, rows: str, weight: _Rounded, bias: AnyFloat | None = None) -> str:
        """rows @ weight.T + bias."""
        graph, scales, blocks = self._graph, weight.scales, weight.scales.blocks
        outputs, width = weight.integers.shape
        if blocks.bits > self._choice.linear.bits:
            self.wide.append(name)
        inputs = [
            rows,
            graph.weight(f"{name}.weight", scales.packed(weight.integers)),
            self._scales(f"{name}.weight.scale", scales.scales.astype(np.float16)),
        ]
        if blocks.has_zero_points:
            inputs.append(graph.weight(f"{name}.weight.zero", scales.packed_zero_points()))
        layout = {"K": width, "N": outputs, "bits": blocks.bits, "block_size": blocks.block}
        if self._accuracy_level:
            layout["accuracy_level"] = self._accuracy_level
        if bias is None:
            return graph.node("MatMulNBits", inputs, name, domain=MS, **layout)
        # not the operator's own bias: on CUDA some versions of ONNX Runtime refuse it
        product = graph.node("MatMulNBits", inputs, f"{name}.product", domain=MS, **layout)
        return graph.node("Add", [product, graph.weight(f"{name}.bias", bias.astype(self.dtype))], name)

    def _scales(self, name: str, scales: npt.NDArray[np.float16]) -> str:
        """Scales in half precision in the file, which take half the room; the engine converts them when it loads."""
        stored = self._graph.weight(name, scales)
        return stored if self.dtype == np.float16 else self._graph.node("Cast", [stored], f"{name}.float", to=1)


def has_wide_down(index: int, layers: int) -> bool:
    """Whether layer `index` is in the first or last eighth, or every third of the others (as in llama.cpp's Q4_K_M)."""
    eighth = layers // 8
    return index < eighth or index >= layers - eighth or (index - eighth) % 3 == 2
