"""The linear layers of recipe `int8`: u8 activations times s8 weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from edge_prm_export.decoder.rotate import block_size, hadamard, rotate_blocks
from edge_prm_export.decoder.weights import DecoderWeights
from edge_prm_export.onnx.linears import Array, FeedForward, Weight, swiglu
from edge_prm_export.onnx.writer import MS, GraphWriter
from edge_prm_export.quantize.gptq import Compensation
from edge_prm_export.quantize.rows import REDUCED_WEIGHT_MAX, WEIGHT_MAX, quantize_rows

ACTIVATION_MAX = 127
ZERO_POINT = 128
SECOND_TERM = 2 * ACTIVATION_MAX
"""A second term is that much finer than the first: what rounding leaves over is half a unit at most."""
NORMED_RANGE = 8.0
"""No value of a rotated row of rms 1 passes it: a Gaussian would once in 10**15 values."""
NORMED_CLIP = 3.9
"""Where one term clips them: on rotated rows of Qwen2.5-1.5B, rounding and clipping together err least at 3.8 to 4."""
_SMALLEST_ROW = 1e-30  # keeps the scale of a row of zeros above zero

_Terms = tuple[tuple[str, str], ...]
"""Quantized rows: (u8 `[s, in]`, the scalar that its product is to be multiplied by) for each term."""


class Int8Linears:
    """Recipe `int8`: u8 activations times s8 weights, summed in 32-bit integers."""

    rotates = True

    def __init__(self, graph: GraphWriter, *, reduce_range: bool = False) -> None:
        self._graph = graph
        self._most = REDUCED_WEIGHT_MAX if reduce_range else WEIGHT_MAX
        self._zero_point = graph.constant("zero_point", ZERO_POINT, np.uint8)

    def embed(self, name: str, weights: DecoderWeights) -> str:
        config = weights.config
        return self.embedding(name, "input_ids", weights.embedding_blocks(), (config.vocabulary, config.hidden))

    def attention_input(self, name: str, rows: str, weight: Weight, seen: Array | None, bias: Array) -> str:
        """With two terms, since attention's logits magnify an error in queries and keys."""
        terms = self._quantize_normed(name, rows, two_terms=True)
        return self._multiply(name, terms, weight(), _compensation(seen), bias)

    def attention_output(self, name: str, rows: str, weight: Weight, seen: Array | None) -> str:
        """One term: a second one was measured to cost 4% of the time and to bring nothing that shows in rewards."""
        scales, terms = self._quantize(name, rows, two_terms=False)
        product = self._multiply(f"{name}.product", terms, weight(), _compensation(seen))
        return self._graph.node("Mul", [product, scales], name)

    def feed_forward(self, name: str, rows: str, weights: FeedForward, seen: Array | None) -> str:
        """Silu stands behind `gate`, so row scales would cost a pass over all of `intermediate`: normed rows have one
        scale instead."""
        terms, shared = self._quantize_normed(name, rows, two_terms=weights.few_rows), _compensation(seen)
        gated = self._multiply(f"{name}.gate", terms, weights.gate(), shared)
        raised = self._multiply(f"{name}.up", terms, weights.up(), shared)
        product = swiglu(self._graph, name, gated, raised)
        weight, down_seen = weights.down(), weights.down_seen
        block = block_size(weight.shape[1])
        if block > 1:
            product = self._spread(name, product, weight.shape[1], block)
            weight = rotate_blocks(weight, block)
            down_seen = None if down_seen is None else rotate_blocks(down_seen, block)
        scales, terms = self._quantize(f"{name}.down", product, two_terms=weights.few_rows)
        lowered = self._multiply(f"{name}.down.product", terms, weight, _compensation(down_seen))
        return self._graph.node("Mul", [lowered, scales], f"{name}.down")

    def any_rows(self, name: str, rows: str, weights: Mapping[str, Weight], *, two_terms: bool = False) -> None:
        """`rows` of which nothing is known times each weight, the products under the weights' names.

        The rows are spread in blocks of 64, get a scale each, and are quantized once for all weights.
        """
        width, spread = 0, rows
        scales: str = ""
        terms: _Terms = ()
        for product, read in weights.items():
            weight = read()
            block = block_size(weight.shape[1])
            if not width:
                width = weight.shape[1]
                spread = self._spread(name, rows, width, block) if block > 1 else rows
                scales, terms = self._quantize(name, spread, two_terms=two_terms)
            whole = self._multiply(f"{product}.integers", terms, rotate_blocks(weight, block), None)
            self._graph.node("Mul", [whole, scales], product)

    def embedding(self, name: str, ids: str, blocks: Iterator[Array], shape: tuple[int, int]) -> str:
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

    def _quantize_normed(self, name: str, rows: str, *, two_terms: bool) -> _Terms:
        """Quantize rows of rms 1 with one scale for all rows of all texts: it costs nothing to multiply by."""
        most = NORMED_RANGE if two_terms else NORMED_CLIP
        steps = [most / ACTIVATION_MAX, most / ACTIVATION_MAX / SECOND_TERM][: 1 + two_terms]
        names = [self._graph.constant(f"normed.step.{step:.3g}", step, np.float32) for step in steps]
        return self._terms(name, rows, names, names, self._zero_point)

    def _quantize(self, name: str, rows: str, *, two_terms: bool) -> tuple[str, _Terms]:
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
        if two_terms:
            units.append(graph.constant("second_step", 1 / SECOND_TERM, np.float32))
            steps.append(graph.node("Mul", [flat, units[1]], f"{name}.scales.second"))
        return scales, self._terms(name, rows, steps, units, zero_points)

    def _terms(self, name: str, rows: str, steps: list[str], units: list[str], zero_points: str) -> _Terms:
        """u8 rows around 128, and with a second step what the first leaves over."""
        graph, terms = self._graph, []
        for index, (step, unit) in enumerate(zip(steps, units, strict=True)):
            u8 = graph.node("QuantizeLinear", [rows, step, zero_points], f"{name}.u8.{index}", axis=0)
            terms.append((u8, unit))
            if index + 1 < len(steps):
                back = graph.node("DequantizeLinear", [u8, step, zero_points], f"{name}.read_back.{index}", axis=0)
                rows = graph.node("Sub", [rows, back], f"{name}.rest.{index}")
        return tuple(terms)

    def _spread(self, name: str, rows: str, width: int, block: int) -> str:
        graph = self._graph
        in_blocks = graph.constant(f"blocks.{block}", [-1, block], np.int64)
        rotation = graph.weight(f"hadamard.{block}", hadamard(block).astype(np.float32))
        blocks = graph.node("Reshape", [rows, in_blocks], f"{name}.blocks")
        spread = graph.node("MatMul", [blocks, rotation], f"{name}.blocks.spread")
        return graph.node("Reshape", [spread, graph.constant(f"rows.{width}", [-1, width], np.int64)], f"{name}.spread")

    def _multiply(
        self, name: str, terms: _Terms, weight: Array, compensation: Compensation | None, bias: Array | None = None
    ) -> str:
        """u8 rows times s8 weight, in integers, times unit and weight scales; one product for each term, added up."""
        graph = self._graph
        integers, scales = self._quantized_weight(weight, compensation)
        columns = graph.weight(f"{name}.weight", integers)
        scale = graph.weight(f"{name}.weight.scale", scales)
        offset = ["", graph.weight(f"{name}.bias", bias.astype(np.float32))] if bias is not None else []
        total = ""
        for index, (u8, unit) in enumerate(terms):
            inputs = [u8, columns, unit, scale, self._zero_point, *(offset if index == 0 else [])]
            product = graph.node("MatMulIntegerToFloat", inputs, f"{name}.{index}", domain=MS)
            total = graph.node("Add", [total, product], name) if index else product
        return total

    def _quantized_weight(self, weight: Array, compensation: Compensation | None) -> tuple[npt.NDArray[np.int8], Array]:
        """int8 `[in, out]` and scales `[out]`."""
        if compensation is not None:
            return compensation.quantize(weight, self._most)
        integers, scales = quantize_rows(weight, self._most)
        return np.ascontiguousarray(integers.T), scales


def _compensation(seen: Array | None) -> Compensation | None:
    return None if seen is None else Compensation(seen)
