"""The linear layers of recipe `fp32`: the checkpoint's arithmetic."""

from __future__ import annotations

import numpy as np

from edge_prm_export.decoder.weights import DecoderWeights
from edge_prm_export.onnx.linears import Array, FeedForward, Weight, swiglu
from edge_prm_export.onnx.writer import GraphWriter


class Fp32Linears:
    """Recipe `fp32`: the checkpoint's arithmetic, for parity and as a reference on the device."""

    rotates = False

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph

    def embed(self, name: str, weights: DecoderWeights) -> str:
        config = weights.config
        table = self._graph.stream(f"{name}.weight", np.float32, (config.vocabulary, config.hidden))
        for block in weights.embedding_blocks():
            table.write(block)
        return self._graph.node("Gather", [table.finish(), "input_ids"], name, axis=0)

    def attention_input(self, name: str, rows: str, weight: Weight, seen: Array | None, bias: Array) -> str:
        product = self.attention_output(f"{name}.product", rows, weight, seen)
        return self._graph.node("Add", [product, self._graph.weight(f"{name}.bias", bias.astype(np.float32))], name)

    def attention_output(self, name: str, rows: str, weight: Weight, seen: Array | None) -> str:
        columns = self._graph.weight(f"{name}.weight", np.ascontiguousarray(weight().T, dtype=np.float32))
        return self._graph.node("MatMul", [rows, columns], name)

    def feed_forward(self, name: str, rows: str, weights: FeedForward, seen: Array | None) -> str:
        gated = self.attention_output(f"{name}.gate", rows, weights.gate, None)
        raised = self.attention_output(f"{name}.up", rows, weights.up, None)
        return self.attention_output(f"{name}.down", swiglu(self._graph, name, gated, raised), weights.down, None)
