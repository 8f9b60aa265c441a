"""Activations of recipe `int8`: rows of fp32 as 8-bit integers around 128, in one part or in two (hi and lo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_prm_export.onnx.writer import GraphWriter

ACTIVATION_MAX = 127
ZERO_POINT = 128
LO_PER_HI = 2 * ACTIVATION_MAX
"""A step of the hi part is this many steps of the lo part: what rounding leaves over is at most half a step."""
NORMED_CLIP = 3.9
"""Where a hi part alone clips rotated rows of rms 1: on those of Qwen2.5-1.5B, rounding and clipping together err least
at 3.8 to 4."""
RANGE_PER_CLIP = 2
"""A hi part that a lo part follows reaches so much further, 7.8: a Gaussian would pass that once in 10**14 values."""
_SMALLEST_ROW = 1e-30  # keeps the scale of a row of zeros above zero


@dataclass(frozen=True)
class Quantized:
    """Rows as integers: `parts`, names of u8 `[rows, in]`, hi and perhaps lo. A part stands for its integers, less 128,
    times its number in `steps`, times the row's scale where there are `scales` `[rows, 1]`."""

    parts: tuple[str, ...]
    steps: tuple[float, ...]
    scales: str = ""


class RowQuantizer:
    """Writes the nodes that quantize rows."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self.zero_point = graph.constant("zero_point", ZERO_POINT, np.uint8)

    def number(self, value: float) -> str:
        """A constant of the graph, float32 scalar."""
        return self._graph.constant(f"number.{value:.9g}", value, np.float32)

    def normed(self, name: str, rows: str, *, hi_lo: bool) -> Quantized:
        """Rows of rms 1 have one scale for all rows of all texts: it costs nothing to multiply by."""
        step = NORMED_CLIP / ACTIVATION_MAX
        steps = (RANGE_PER_CLIP * step, RANGE_PER_CLIP * step / LO_PER_HI) if hi_lo else (step,)
        return Quantized(self._parts(name, rows, [self.number(step) for step in steps], self.zero_point), steps)

    def scaled(self, name: str, rows: str, *, hi_lo: bool) -> Quantized:
        """Rows with a scale each, largest |x| / 127."""
        graph = self._graph
        axis = graph.constant("axis.last", [-1], np.int64)
        highest = graph.node("ReduceMax", [rows, axis], f"{name}.highest", keepdims=1)
        lowest = graph.node("ReduceMin", [rows, axis], f"{name}.lowest", keepdims=1)  # cheaper than a pass of Abs
        negated = graph.node("Neg", [lowest], f"{name}.lowest.negated")
        smallest = graph.constant("row.smallest", _SMALLEST_ROW, np.float32)
        largest = graph.node("Max", [highest, negated, smallest], f"{name}.largest")
        scales = graph.node("Mul", [largest, self.number(1 / ACTIVATION_MAX)], f"{name}.scales")
        flat = graph.node("Reshape", [scales, axis], f"{name}.scales.flat")
        count = graph.node("Shape", [flat], f"{name}.count")
        zero_points = graph.node("Expand", [self.zero_point, count], f"{name}.zero_points")
        steps = (1.0, 1 / LO_PER_HI) if hi_lo else (1.0,)
        row_steps = [flat, *(graph.node("Mul", [flat, self.number(s)], f"{name}.scales.second") for s in steps[1:])]
        return Quantized(self._parts(name, rows, row_steps, zero_points), steps, scales)

    def _parts(self, name: str, rows: str, steps: Sequence[str], zero_points: str) -> tuple[str, ...]:
        """The hi part, and with a second step the lo part: what the first step leaves over."""
        graph, parts = self._graph, []
        for index, step in enumerate(steps):
            u8 = graph.node("QuantizeLinear", [rows, step, zero_points], f"{name}.u8.{index}", axis=0)
            parts.append(u8)
            if index + 1 < len(steps):
                back = graph.node("DequantizeLinear", [u8, step, zero_points], f"{name}.read_back.{index}", axis=0)
                rows = graph.node("Sub", [rows, back], f"{name}.rest.{index}")
        return tuple(parts)
