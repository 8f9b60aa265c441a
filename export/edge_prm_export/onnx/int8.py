"""The linear layers of recipe `int8`: u8 activations times s8 weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edge_prm.arrays import AnyFloat, Int8
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import LayerInputs, Linear, concatenated
from edge_prm_export.decoder.rotate import block_size, hadamard, rotate_blocks
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, HadamardDown, RotateResidual, RotateValues, Transform
from edge_prm_export.onnx.linears import FeedForward, Weight, swiglu
from edge_prm_export.onnx.writer import MS, GraphWriter
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.rows import REDUCED_WEIGHT_MAX, WEIGHT_MAX, quantize_rows

ACTIVATION_MAX = 127
ZERO_POINT = 128
LO_PER_HI = 2 * ACTIVATION_MAX
"""A step of the hi part is this many steps of the lo part: what rounding leaves over is at most half a step."""
NORMED_RANGE = 8.0
"""No value of a rotated row of rms 1 passes it: a Gaussian would once in 10**15 values."""
NORMED_CLIP = 3.9
"""Where a hi part alone clips them: on rotated rows of Qwen2.5-1.5B, rounding and clipping together err least at 3.8 to
4."""
_SMALLEST_ROW = 1e-30  # keeps the scale of a row of zeros above zero

_Parts = tuple[tuple[str, str], ...]
"""Quantized rows: (u8 `[s, in]`, the scalar that its product is to be multiplied by) of the hi part, and of the lo part
where there is one."""


class Int8Linears:
    """Recipe `int8`: u8 activations times s8 weights, summed in 32-bit integers."""

    dtype = np.float32
    wide = ()

    def __init__(self, graph: GraphWriter, *, reduce_range: bool = False) -> None:
        """`reduce_range`: weights of seven bits."""
        self._graph = graph
        self._weight_max = REDUCED_WEIGHT_MAX if reduce_range else WEIGHT_MAX
        self._zero_point = graph.constant("zero_point", ZERO_POINT, np.uint8)

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """Residual stream and values are rotated, and blocks of what enters `down`."""
        block = block_size(shapes.intermediate)
        hadamard_down = (HadamardDown(block),) if block > 1 else ()
        return (RotateValues(shapes), FoldNorms(), RotateResidual(shapes), *hadamard_down)

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`."""
        shape = (decoder.shapes.vocabulary, decoder.shapes.hidden)
        return self.embedding(name, ids, decoder.embedding_blocks(), shape)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: LayerInputs) -> str:
        """With a hi/lo split, since attention's logits magnify an error in queries and keys."""
        parts = self._quantize_normed(name, rows, hi_lo=True)
        weight, bias = concatenated(linears)
        return self._multiply(name, parts, weight, GPTQ(inputs.attention), bias)

    def attention_output(self, name: str, rows: str, linear: Linear, inputs: LayerInputs) -> str:
        """hi only: a lo part was measured to cost 4% of the time and to bring nothing that shows in rewards."""
        scales, parts = self._quantize(name, rows, hi_lo=False)
        product = self._multiply(f"{name}.product", parts, linear.weight(), GPTQ(inputs.output))
        return self._graph.node("Mul", [product, scales], name)

    def feed_forward(self, name: str, rows: str, weights: FeedForward) -> str:
        """silu comes after `gate`, so row scales would cost a pass over all of `intermediate`: normed rows have one
        scale instead."""
        hi_lo = weights.is_last_layer
        parts, shared = self._quantize_normed(name, rows, hi_lo=hi_lo), GPTQ(weights.inputs.feed_forward)
        gate_out = self._multiply(f"{name}.gate", parts, weights.gate.weight(), shared)
        up_out = self._multiply(f"{name}.up", parts, weights.up.weight(), shared)
        product = swiglu(self._graph, name, gate_out, up_out)
        intermediate = weights.down.shape[1]
        product = self._hadamard(name, product, intermediate, block_size(intermediate))
        scales, parts = self._quantize(f"{name}.down", product, hi_lo=hi_lo)
        down_out = self._multiply(f"{name}.down.product", parts, weights.down.weight(), GPTQ(weights.inputs.down))
        return self._graph.node("Mul", [down_out, scales], f"{name}.down")

    def linear_dynamic(self, name: str, rows: str, weights: Mapping[str, Weight], *, hi_lo: bool = False) -> None:
        """`rows` without known statistics times each weight, the products under the weights' names.

        The rows are rotated in Hadamard blocks, get a scale each, and are quantized once for all weights.
        """
        width, scales = 0, ""
        parts: _Parts = ()
        for product, read in weights.items():
            weight = read()
            block = block_size(weight.shape[1])
            if not width:
                width = weight.shape[1]
                scales, parts = self._quantize(name, self._hadamard(name, rows, width, block), hi_lo=hi_lo)
            integers = self._multiply(f"{product}.integers", parts, rotate_blocks(weight, block), None)
            self._graph.node("Mul", [integers, scales], product)

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

    def _quantize_normed(self, name: str, rows: str, *, hi_lo: bool) -> _Parts:
        """Quantize rows of rms 1 with one scale for all rows of all texts: it costs nothing to multiply by."""
        limit = NORMED_RANGE if hi_lo else NORMED_CLIP
        steps = [limit / ACTIVATION_MAX, limit / ACTIVATION_MAX / LO_PER_HI][: 1 + hi_lo]
        names = [self._graph.constant(f"normed.step.{step:.3g}", step, np.float32) for step in steps]
        return self._parts(name, rows, names, names, self._zero_point)

    def _quantize(self, name: str, rows: str, *, hi_lo: bool) -> tuple[str, _Parts]:
        """Quantize rows with a scale each, largest |x| / 127; products still need these scales `[s, 1]`."""
        graph = self._graph
        axis = graph.constant("axis.last", [-1], np.int64)
        highest = graph.node("ReduceMax", [rows, axis], f"{name}.highest", keepdims=1)
        lowest = graph.node("ReduceMin", [rows, axis], f"{name}.lowest", keepdims=1)  # cheaper than a pass of Abs
        negated = graph.node("Neg", [lowest], f"{name}.lowest.negated")
        smallest = graph.constant("row.smallest", _SMALLEST_ROW, np.float32)
        largest = graph.node("Max", [highest, negated, smallest], f"{name}.largest")
        step = graph.constant("row.step", 1 / ACTIVATION_MAX, np.float32)
        scales = graph.node("Mul", [largest, step], f"{name}.scales")
        flat = graph.node("Reshape", [scales, axis], f"{name}.scales.flat")
        count = graph.node("Shape", [flat], f"{name}.count")
        zero_points = graph.node("Expand", [self._zero_point, count], f"{name}.zero_points")
        steps, units = [flat], [graph.constant("one", 1.0, np.float32)]
        if hi_lo:
            units.append(graph.constant("second_step", 1 / LO_PER_HI, np.float32))
            steps.append(graph.node("Mul", [flat, units[1]], f"{name}.scales.second"))
        return scales, self._parts(name, rows, steps, units, zero_points)

    def _parts(self, name: str, rows: str, steps: list[str], units: list[str], zero_points: str) -> _Parts:
        """The hi part, u8 rows around 128, and with a second step the lo part: what the first step leaves over."""
        graph, parts = self._graph, []
        for index, (step, unit) in enumerate(zip(steps, units, strict=True)):
            u8 = graph.node("QuantizeLinear", [rows, step, zero_points], f"{name}.u8.{index}", axis=0)
            parts.append((u8, unit))
            if index + 1 < len(steps):
                back = graph.node("DequantizeLinear", [u8, step, zero_points], f"{name}.read_back.{index}", axis=0)
                rows = graph.node("Sub", [rows, back], f"{name}.rest.{index}")
        return tuple(parts)

    def _hadamard(self, name: str, rows: str, width: int, block: int) -> str:
        """`rows` `[s, width]` with each block of values multiplied by a Hadamard matrix; a block of 1 stays."""
        if block == 1:
            return rows
        graph = self._graph
        in_blocks = graph.constant(f"blocks.{block}", [-1, block], np.int64)
        rotation = graph.weight(f"hadamard.{block}", hadamard(block).astype(np.float32))
        blocks = graph.node("Reshape", [rows, in_blocks], f"{name}.blocks")
        rotated = graph.node("MatMul", [blocks, rotation], f"{name}.blocks.spread")
        shape = graph.constant(f"rows.{width}", [-1, width], np.int64)
        return graph.node("Reshape", [rotated, shape], f"{name}.spread")

    def _multiply(
        self, name: str, parts: _Parts, weight: AnyFloat, gptq: GPTQ | None, bias: AnyFloat | None = None
    ) -> str:
        """u8 rows times s8 weight, in integers, times unit and weight scales; one product for each part, added up."""
        graph = self._graph
        integers, scales = self._quantized_weight(weight, gptq)
        columns = graph.weight(f"{name}.weight", integers)
        scale = graph.weight(f"{name}.weight.scale", scales)
        offset = ["", graph.weight(f"{name}.bias", bias.astype(np.float32))] if bias is not None else []
        total = ""
        for index, (u8, unit) in enumerate(parts):
            inputs = [u8, columns, unit, scale, self._zero_point, *(offset if index == 0 else [])]
            product = graph.node("MatMulIntegerToFloat", inputs, f"{name}.{index}", domain=MS)
            total = graph.node("Add", [total, product], name) if index else product
        return total

    def _quantized_weight(self, weight: AnyFloat, gptq: GPTQ | None) -> tuple[Int8, AnyFloat]:
        """int8 `[in, out]` and scales `[out]`."""
        if gptq is not None:
            return gptq.quantize(weight, self._weight_max)
        integers, scales = quantize_rows(weight, self._weight_max)
        return np.ascontiguousarray(integers.T), scales
