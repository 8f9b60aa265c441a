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
from edge_prm_export.decoder.gradient import feed_forward_derivatives
from edge_prm_export.decoder.layers import LayerInputs, Linear, concatenated
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues, Transform
from edge_prm_export.onnx.linears import FeedForward, Streams, counts, swiglu
from edge_prm_export.onnx.writer import MS, GraphWriter
from edge_prm_export.quantize.feedback import OutputFeedback
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.nbits import Blocks, Known, Scales, compensated, scales_of
from edge_prm_export.quantize.rows import of_unit_size

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations are rounded to 8 bits, in blocks as the weights are. 0 rounds nothing."""

COMPENSATED = 0.3
"""What GPTQ leaves of the error of gate and up, relative to `down`'s: SwiGLU's channels are hardly correlated."""
WIDEST = 64  # values of a block at most: see edge_prm_export.onnx.recipes


@dataclass(frozen=True)
class NBitsChoice:
    """Bits of each weight of a recipe: `linear` of most, `wide` of those that carry the error, `embedding`.

    `wide_share`: of SwiGLU's channels.
    """

    linear: Blocks
    wide: Blocks
    embedding: Blocks
    wide_share: float = 0.0


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

    def read_layers(self, layers: int) -> int:
        """Only the last: what activations lose is little beside the weights, or nothing."""
        return 1

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """Residual stream and values are rotated: no weight and no activation is far larger than the others."""
        return (RotateValues(shapes), FoldNorms(), RotateResidual(shapes))

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`; only the rows that are read become floating point."""
        graph, shapes = self._graph, decoder.shapes
        blocks = self._choice.embedding.fitting(shapes.hidden)
        table = graph.stream(f"{name}.weight", np.uint8, (shapes.vocabulary, shapes.hidden * blocks.bits // 8))
        scales, points = [], []
        for rows in decoder.embedding_blocks():
            found = scales_of(rows, blocks, np.float16)
            table.write(found.packed(found.nearest(rows)).reshape(len(rows), -1))
            scales.append(found.scales.astype(np.float16))
            points.append(found.packed_zero_points())
        layout = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.block, "bits": blocks.bits}
        inputs = [table.finish(), ids, self._scales(f"{name}.scale", np.concatenate(scales))]
        if blocks.has_zero_points:
            inputs.append(graph.weight(f"{name}.zero", np.concatenate(points)))
        return graph.node("GatherBlockQuantized", inputs, name, domain=MS, **layout)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: LayerInputs) -> str:
        """Wide: attention's logits magnify an error in queries and keys, and these weights are few."""
        weight, bias = concatenated(linears)
        return self._multiply(
            name, rows, self._compensated(weight, _gptq(inputs.attention, inputs), self._choice.wide), bias
        )

    def attention_output(self, name: str, rows: Streams, linear: Linear, inputs: LayerInputs) -> Streams:
        """Wide, since it is small."""
        weight = self._compensated(linear.weight(), _gptq(inputs.output, inputs), self._choice.wide)
        return rows.each(lambda _, stream: self._multiply(name, stream, weight))

    def feed_forward(self, name: str, rows: Streams, weights: FeedForward) -> Streams:
        """The one stream that there is."""
        return rows.each(lambda _, stream: self._feed_forward(name, stream, weights))

    def _feed_forward(self, name: str, rows: str, weights: FeedForward) -> str:
        """down(silu(gate(rows)) * up(rows)), as a sum of two: of the wide channels, and of all others."""
        gate, up, down = weights.gate.weight(), weights.up.weight(), weights.down.weight()
        effect = Effect.of(weights.inputs, (gate, up, down))
        order = np.argsort(-effect.channels, kind="stable")
        count = wide_channels(len(order), self._choice.wide_share)
        normed = _gptq(weights.inputs.feed_forward, weights.inputs)
        products = np.take(of_unit_size(weights.inputs.down), order, axis=1)

        def part(name: str, which: slice, blocks: Blocks) -> str:
            channels, inputs = order[which], products[:, which]
            gate_rounded, up_rounded = (
                self._compensated(
                    weight[channels], normed, blocks, feedback=self._feedback(derivatives, blocks, channels)
                )
                for weight, derivatives in ((gate, effect.gate), (up, effect.up))
            )
            gate_out = self._multiply(f"{name}.gate", rows, gate_rounded)
            up_out = self._multiply(f"{name}.up", rows, up_rounded)
            product = swiglu(self._graph, name, gate_out, up_out)
            importance = np.einsum("tc,tc->c", inputs, inputs)
            gptq = _gptq(inputs, weights.inputs, of_size=True)
            feedback = self._feedback(effect.end, blocks)
            rounded = self._compensated(down[:, channels], gptq, blocks, importance=importance, feedback=feedback)
            return self._multiply(f"{name}.down", product, rounded)

        if not count:
            return part(name, slice(None), self._choice.linear)
        parts = [
            part(f"{name}.wide", slice(count), self._choice.wide),
            part(name, slice(count, None), self._choice.linear),
        ]
        return self._graph.node("Add", parts, f"{name}.sum")

    def _feedback(
        self, derivatives: AnyFloat | None, blocks: Blocks, outputs: npt.NDArray[np.intp] | slice = slice(None)
    ) -> OutputFeedback | None:
        """Feedback among `outputs` of a weight, given `derivatives` `[rows, out]`; wide ones err too little for it."""
        if derivatives is None or blocks.bits > self._choice.linear.bits:
            return None
        return OutputFeedback(derivatives[:, outputs])

    def _compensated(self, weight: AnyFloat, gptq: GPTQ, blocks: Blocks, **known: Any) -> _Rounded:
        """Rounded by GPTQ; `known`: see Known."""
        return _Rounded(*compensated(weight, gptq, blocks.fitting(weight.shape[1]), Known(np.float16, **known)))

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


def _gptq(rows: AnyFloat, inputs: LayerInputs, *, of_size: bool = False) -> GPTQ:
    """`rows` `[tokens, in]` of `inputs`; those of read positions count more."""
    return GPTQ(rows, counts(inputs), align=WIDEST, of_size=of_size)


@dataclass(frozen=True, eq=False)
class Effect:
    """How much the errors of a feed-forward layer matter.

    `channels` `[channels]`: what rounding errors in all weights of one of SwiGLU's channels do to rewards, or to the
    residual stream where no derivatives are known. The others: derivatives `[rows, out]` of rewards with respect to
    what gate, up and down give.
    """

    channels: AnyFloat
    gate: AnyFloat | None = None
    up: AnyFloat | None = None
    end: AnyFloat | None = None

    @classmethod
    def of(cls, inputs: LayerInputs, weights: tuple[AnyFloat, AnyFloat, AnyFloat]) -> Effect:
        """Of a layer with `weights` (gate, up, down).

        Few channels are large, so a few with more bits take away much of the error; and neighbours of like size suit
        blocks and GPTQ.
        """
        gate, up, down = weights
        known = inputs.derivatives
        if known is None:
            rows = of_unit_size(inputs.down)
            return cls(np.einsum("tc,tc->c", rows, rows) * (down**2).sum(axis=0))
        found = feed_forward_derivatives(weights, known.feed_forward, known.end)
        sizes = np.mean(found.inputs**2 * (known.end**2).sum(axis=1, keepdims=True), axis=0) * np.mean(down**2)
        for derivatives, weight in ((found.gate, gate), (found.up, up)):
            sizes = sizes + COMPENSATED * (derivatives**2).mean(axis=0) * (weight**2).sum(axis=1)
        return cls(sizes, found.gate, found.up, known.end)


def wide_channels(channels: int, share: float) -> int:
    """How many of `channels` are wide: about `share`, in whole blocks."""
    unit = Blocks(8, WIDEST).fitting(channels).block
    return round(channels * share / unit) * unit
