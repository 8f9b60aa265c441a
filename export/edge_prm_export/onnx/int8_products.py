"""Multiplications of recipe `int8`: the two streams of a run, joined into one matrix for each weight.

The rows of read positions come after those of all tokens, hi parts first, then lo parts. So a weight is read once, and
what read positions cost is a few rows more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.onnx.int8_rows import Quantized, RowQuantizer
from edge_prm_export.onnx.linears import SUFFIXES, Streams
from edge_prm_export.onnx.writer import MS, GraphWriter
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.rows import quantize_rows

_TOKENS, _MINUS_READ, _MINUS_TWICE_READ = "tokens.count", "read.count.minus", "read.count.minus.twice"
_TO_THE_END = np.iinfo(np.int64).max


class Stored(NamedTuple):
    """Names of a weight in the graph: s8 `[in, out]`, and scales `[out]`."""

    columns: str
    scales: str


class Joined(NamedTuple):
    """The rows of both streams as one u8 matrix; `parts` of the streams that are there, "" suffix for all rows.

    A product of it has the unit of its first rows.
    """

    rows: str
    parts: dict[str, Quantized]

    @property
    def unit(self) -> float:
        """What the integers of the first rows are multiplied by."""
        return next(iter(self.parts.values())).steps[0]


class Int8Products:
    """Writes weights as integers, and their products."""

    def __init__(self, graph: GraphWriter, weight_max: int) -> None:
        self._graph = graph
        self._weight_max = weight_max
        self.quantize = RowQuantizer(graph)

    def declare_counts(self, ids: str) -> None:
        """How many rows the streams have, given the token ids `[s]` and the graph's `read_at`."""
        graph = self._graph
        graph.node("Shape", [ids], _TOKENS)
        graph.node("Neg", [graph.node("Shape", ["read_at"], "read.count")], _MINUS_READ)
        graph.node("Add", [_MINUS_READ, _MINUS_READ], _MINUS_TWICE_READ)

    def store(self, name: str, weight: AnyFloat, gptq: GPTQ | None) -> Stored:
        """Round a weight `[out, in]`, for known inputs where they are known, and write it."""
        if gptq is not None:
            integers, scales = gptq.quantize(weight, self._weight_max)
        else:
            rows, scales = quantize_rows(weight, self._weight_max)
            integers = np.ascontiguousarray(rows.T)
        graph = self._graph
        return Stored(graph.weight(f"{name}.weight", integers), graph.weight(f"{name}.weight.scale", scales))

    def sum_of_parts(self, name: str, rows: Quantized, weight: Stored, bias: AnyFloat | None = None) -> str:
        """One product for each part of the rows, added up; still without the scales of rows."""
        total = ""
        for index, (part, step) in enumerate(zip(rows.parts, rows.steps, strict=True)):
            product = self._multiply(f"{name}.{index}", part, step, weight, None if index else bias)
            total = self._graph.node("Add", [total, product], name) if index else product
        return total

    def join_normed(self, name: str, rows: Streams) -> Joined:
        """Rows of rms 1 with one scale for all; those of read positions in two parts."""
        quantize = self.quantize.normed
        return self._joined(name, {of: quantize(f"{name}{of}", row, hi_lo=bool(of)) for of, row in rows.named()})

    def products(self, name: str, joined: Joined, weight: Stored) -> Streams:
        """The product of each stream. Where there are both, all rows are followed by rows of no use."""
        graph = self._graph
        product = self._multiply(f"{name}.product", joined.rows, joined.unit, weight)
        all_rows = product if SUFFIXES[0] in joined.parts else ""
        if SUFFIXES[1] not in joined.parts:
            return Streams(all_rows)
        bounds = ((_MINUS_TWICE_READ, _MINUS_READ), (_MINUS_READ, graph.constant("to.end", [_TO_THE_END], np.int64)))
        total = ""
        for index, (step, (start, end)) in enumerate(zip(joined.parts[SUFFIXES[1]].steps, bounds, strict=True)):
            part = self._slice(f"{name}.part.{index}", product, start, end)
            if step != joined.unit:
                factor = self.quantize.number(step / joined.unit)
                part = graph.node("Mul", [part, factor], f"{name}.part.{index}.scaled")
            total = graph.node("Add", [total, part], f"{name}.read.sum") if index else part
        return Streams(all_rows, total)

    def scaled_products(self, name: str, rows: Streams, weight: Stored) -> Streams:
        """Rows with a scale each times a weight; the rows of no use are left out."""
        quantize = self.quantize.scaled
        joined = self._joined(name, {of: quantize(f"{name}{of}", row, hi_lo=bool(of)) for of, row in rows.named()})
        found, scales = self.products(name, joined, weight), {of: part.scales for of, part in joined.parts.items()}
        if found.all_rows and found.read:
            start = self._graph.constant("from.start", [0], np.int64)
            found = found._replace(all_rows=self._slice(f"{name}.all", found.all_rows, start, _TOKENS))
            scales[SUFFIXES[0]] = self._slice(f"{name}.scales.all", scales[SUFFIXES[0]], start, _TOKENS)
        return found.each(lambda of, product: self._graph.node("Mul", [product, scales[of]], f"{name}{of}"))

    def _joined(self, name: str, parts: dict[str, Quantized]) -> Joined:
        pieces = [part for quantized in parts.values() for part in quantized.parts]
        joined = self._graph.node("Concat", pieces, f"{name}.joined", axis=0) if len(pieces) > 1 else pieces[0]
        return Joined(joined, parts)

    def _multiply(self, name: str, rows: str, unit: float, weight: Stored, bias: AnyFloat | None = None) -> str:
        """u8 rows times s8 weight, in integers, times unit and weight scales."""
        quantize, graph = self.quantize, self._graph
        inputs = [rows, weight.columns, quantize.number(unit), weight.scales, quantize.zero_point]
        if bias is not None:
            inputs += ["", graph.weight(f"{name}.bias", bias.astype(np.float32))]
        return graph.node("MatMulIntegerToFloat", inputs, name, domain=MS)

    def _slice(self, name: str, rows: str, start: str, end: str) -> str:
        axis = self._graph.constant("axis.rows", [0], np.int64)
        return self._graph.node("Slice", [rows, start, end, axis], name)
