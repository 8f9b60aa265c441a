"""The linear layers of recipes `fp32` and `fp16`: weights and activations are floating point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import LayerInputs, Linear, concatenated
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, Transform
from edge_prm_export.onnx.linears import FeedForward, Streams, swiglu
from edge_prm_export.onnx.writer import GraphWriter


class FloatLinears:
    """Recipe `fp32`: the checkpoint's arithmetic, for parity and as a reference on the device. `fp16`: half of it."""

    wide = ()

    def __init__(self, graph: GraphWriter, dtype: type[np.floating[Any]] = np.float32) -> None:
        self._graph = graph
        self.dtype = dtype

    def read_layers(self, layers: int) -> int:
        """Only the last: no row errs so much that it pays to compute one twice."""
        return 1

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """Norm weights go into the linear layers. fp16 ends at 65,504: a rotation spreads the largest values of the
        residual stream."""
        return (FoldNorms(),) if self.dtype == np.float32 else (FoldNorms(), RotateResidual(shapes))

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`."""
        shapes = decoder.shapes
        table = self._graph.stream(f"{name}.weight", self.dtype, (shapes.vocabulary, shapes.hidden))
        for block in decoder.embedding_blocks():
            table.write(block.astype(self.dtype))
        return self._graph.node("Gather", [table.finish(), ids], name, axis=0)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: LayerInputs) -> str:
        """Queries, keys and values in one multiplication."""
        weight, bias = concatenated(linears)
        if bias is None:
            return self._product(name, rows, weight)
        product = self._product(f"{name}.product", rows, weight)
        return self._graph.node("Add", [product, self._graph.weight(f"{name}.bias", bias.astype(self.dtype))], name)

    def attention_output(self, name: str, rows: Streams, linear: Linear, inputs: LayerInputs) -> Streams:
        """rows @ weight.T."""
        return rows.each(lambda _, stream: self._product(name, stream, linear.weight()))

    def feed_forward(self, name: str, rows: Streams, weights: FeedForward) -> Streams:
        """down(silu(gate(rows)) * up(rows))."""

        def products(_: str, stream: str) -> str:
            gate_out = self._product(f"{name}.gate", stream, weights.gate.weight())
            up_out = self._product(f"{name}.up", stream, weights.up.weight())
            return self._product(f"{name}.down", swiglu(self._graph, name, gate_out, up_out), weights.down.weight())

        return rows.each(products)

    def _product(self, name: str, rows: str, weight: AnyFloat) -> str:
        columns = self._graph.weight(f"{name}.weight", np.ascontiguousarray(weight.T, dtype=self.dtype))
        return self._graph.node("MatMul", [rows, columns], name)
