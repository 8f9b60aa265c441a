"""The linear layers of recipe `fp32`: the checkpoint's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import Linear, concatenated
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, Transform
from edge_prm_export.onnx.linears import FeedForward, swiglu
from edge_prm_export.onnx.writer import GraphWriter


class Fp32Linears:
    """Recipe `fp32`: the checkpoint's arithmetic, for parity and as a reference on the device."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """Norm weights go into the linear layers."""
        return (FoldNorms(),)

    def embed(self, name: str, decoder: TransformedDecoder) -> str:
        """The embedding of `input_ids`, `[s, hidden]`."""
        shapes = decoder.shapes
        table = self._graph.stream(f"{name}.weight", np.float32, (shapes.vocabulary, shapes.hidden))
        for block in decoder.embedding_blocks():
            table.write(block)
        return self._graph.node("Gather", [table.finish(), "input_ids"], name, axis=0)

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: AnyFloat) -> str:
        """Queries, keys and values in one multiplication."""
        weight, bias = concatenated(linears)
        if bias is None:
            return self._product(name, rows, weight)
        product = self._product(f"{name}.product", rows, weight)
        return self._graph.node("Add", [product, self._graph.weight(f"{name}.bias", bias.astype(np.float32))], name)

    def attention_output(self, name: str, rows: str, linear: Linear, inputs: AnyFloat) -> str:
        """rows @ weight.T."""
        return self._product(name, rows, linear.weight())

    def feed_forward(self, name: str, rows: str, weights: FeedForward) -> str:
        """down(silu(gate(rows)) * up(rows))."""
        gate_out = self._product(f"{name}.gate", rows, weights.gate.weight())
        up_out = self._product(f"{name}.up", rows, weights.up.weight())
        return self._product(f"{name}.down", swiglu(self._graph, name, gate_out, up_out), weights.down.weight())

    def _product(self, name: str, rows: str, weight: AnyFloat) -> str:
        columns = self._graph.weight(f"{name}.weight", np.ascontiguousarray(weight.T, dtype=np.float32))
        return self._graph.node("MatMul", [rows, columns], name)
