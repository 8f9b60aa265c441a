"""Checkpoint -> ONNX graph of a Qwen2 PRM, reward head included.

    input_ids [s], read_at [r], offset [1], past keys and values  ->  rewards [r], present keys and values

`offset` tokens are in the cache already; `read_at` are indices into `input_ids`, in any order. Everything behind the
last layer's attention is computed at the read positions only, since no other token's output is ever looked at.
Norm weights are folded into the linears behind them; how a recipe multiplies is the business of `linears.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import edge_prm
from edge_prm.backends.onnx.native import MODEL_NAME
from edge_prm.head import Head
from edge_prm_export.calibration.golden import encode_texts
from edge_prm_export.calibration.texts import CALIBRATION
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.decoder.reference import LayerInputs, ReferenceRun
from edge_prm_export.decoder.weights import DecoderWeights
from edge_prm_export.job import ExportJob, ExportResult, file_entry
from edge_prm_export.onnx.fp32 import Fp32Linears
from edge_prm_export.onnx.head import add_head
from edge_prm_export.onnx.int8 import Int8Linears
from edge_prm_export.onnx.linears import FeedForward, Linears
from edge_prm_export.onnx.writer import MS, GraphWriter, WeightFile

Array = npt.NDArray[np.floating[Any]]

WEIGHTS_NAME = "model.onnx.data"


def write_model(job: ExportJob) -> ExportResult:
    """Write the graph and its weights; on the way, the golden texts are scored in full precision."""
    folder, checkpoint, head, golden = job.folder, job.checkpoint, job.head, job.golden
    (recipe,) = job.recipes
    calibration = encode_texts(job.encoder, CALIBRATION) if recipe.name == "int8" else []
    reference = ReferenceRun(checkpoint, [encoded.ids for *_, encoded in golden + calibration])
    weights = WeightFile(folder / WEIGHTS_NAME)
    try:
        graph = GraphWriter(weights)
        linears: Linears = (
            Fp32Linears(graph) if recipe.name == "fp32" else Int8Linears(graph, reduce_range=recipe.reduce_range)
        )
        with job.progress(f"writing {recipe.name} layers", checkpoint.config.layers) as advance:
            for _ in write_graph(graph, checkpoint, head, linears, reference):
                advance(1)
        (folder / MODEL_NAME).write_bytes(graph.model(edge_prm.__version__))
        files = {WEIGHTS_NAME: weights.close(), MODEL_NAME: file_entry(folder / MODEL_NAME)}
    finally:
        weights.abort()
    return ExportResult(
        recipe, files, [reference.rewards(head, index, text.read_at) for index, (*_, text) in enumerate(golden)]
    )


def write_graph(
    graph: GraphWriter, checkpoint: Checkpoint, head: Head, linears: Linears, reference: ReferenceRun
) -> Iterator[int]:
    """Write the whole graph, layer by layer beside a run in full precision that shows what goes into each linear.

    Yields the number of each layer when it is written; at the end the reference run has its rewards too.
    """
    yield from _Decoder(graph, checkpoint, linears).write(head, reference)


class _Decoder:
    def __init__(self, graph: GraphWriter, checkpoint: Checkpoint, linears: Linears) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.config = self.spec.shapes
        self.linears = linears
        self.weights = DecoderWeights(checkpoint, rotated=linears.rotates)

    def write(self, head: Head, reference: ReferenceRun) -> Iterator[int]:
        graph = self.graph
        self._inputs()
        residual = self.linears.embed("embedding", self.weights)
        normed = graph.node(
            "SimplifiedLayerNormalization",
            [residual, self._ones()],
            "norm.0",
            axis=-1,
            epsilon=self.spec.eps,
            stash_type=1,
        )
        for layer in range(self.config.layers):
            seen = reference.run_layer(layer)
            attended = self._attention(layer, normed, seen)
            if layer == self.config.layers - 1:
                attended = graph.node("Gather", [attended, "read_at"], "attended.read", axis=0)
                residual = graph.node("Gather", [residual, "read_at"], "residual.read", axis=0)
            output = self._attention_output(layer, attended, seen)
            normed, residual = self._add_and_norm(f"layer.{layer}.middle", output, residual)
            output = self._feed_forward(layer, normed, seen)
            normed, residual = self._add_and_norm(f"layer.{layer}.end", output, residual)
            yield layer
        first, *rest = head.layers
        add_head(graph, head.kind, ((self.weights.head(first[0]), first[1]), *rest), normed)

    def _inputs(self) -> None:
        graph, config = self.graph, self.config
        graph.input("input_ids", np.int64, ["s"])
        graph.input("read_at", np.int64, ["r"])
        graph.input("offset", np.int32, [1])
        graph.output("rewards", np.float32, ["r"])
        for layer in range(config.layers):
            for kind in ("key", "value"):
                graph.input(f"past_{kind}.{layer}", np.float32, [1, config.kv_heads, "past", config.head_dim])
                graph.output(f"present_{kind}.{layer}", np.float32, [1, config.kv_heads, "present", config.head_dim])
        length = graph.node("Cast", [graph.node("Shape", ["input_ids"], "length.int64")], "length", to=6)  # int32
        graph.node("Add", ["offset", length], "total_length")
        graph.node("Sub", ["total_length", graph.constant("one.int32", [1], np.int32)], "total_length.less_one")
        # One position more than the context: a run may compute one token after the last (see backends/onnx/native.py).
        angles = np.arange(config.context_length + 1)[:, None] * self.spec.rope.theta ** (
            -np.arange(0, config.head_dim, 2) / config.head_dim
        )
        graph.weight("rotary.cos", np.cos(angles).astype(np.float32))
        graph.weight("rotary.sin", np.sin(angles).astype(np.float32))

    def _attention(self, layer: int, normed: str, seen: LayerInputs) -> str:
        """Query, key and value in one multiplication; rotary embedding and cache inside the attention operator."""
        graph, config = self.graph, self.config
        name = f"layer.{layer}.qkv"
        parts = [self.weights.attention_input(layer, kind) for kind in ("q", "k", "v")]
        weight, bias = (np.concatenate(part) for part in zip(*parts, strict=True))
        packed = self.linears.attention_input(name, normed, lambda: weight, self._rotated(seen.attention), bias)
        packed = graph.node("Unsqueeze", [packed, graph.constant("axis.0", [0], np.int64)], f"{name}.batched")
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        present = [f"present_key.{layer}", f"present_value.{layer}"]
        lengths = ["total_length.less_one", "total_length"]
        attended = graph.node(
            "GroupQueryAttention",
            [packed, "", "", *past, *lengths, "rotary.cos", "rotary.sin"],
            [f"layer.{layer}.attention", *present],
            domain=MS,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        width = graph.constant("attention.shape", [-1, config.heads * config.head_dim], np.int64)
        return graph.node("Reshape", [attended, width], f"layer.{layer}.attention.rows")

    def _attention_output(self, layer: int, attended: str, seen: LayerInputs) -> str:
        weights = self.weights
        name, inputs = f"layer.{layer}.output", weights.rotate_values(seen.output)
        return self.linears.attention_output(name, attended, lambda: weights.attention_output(layer), inputs)

    def _feed_forward(self, layer: int, normed: str, seen: LayerInputs) -> str:
        """SwiGLU: down(silu(gate(x)) * up(x))."""
        weights = FeedForward(
            gate=lambda: self.weights.feed_forward(layer, "gate"),
            up=lambda: self.weights.feed_forward(layer, "up"),
            down=lambda: self.weights.feed_forward(layer, "down"),
            down_seen=seen.down,
            few_rows=layer == self.config.layers - 1,
        )
        return self.linears.feed_forward(f"layer.{layer}.mlp", normed, weights, self._rotated(seen.feed_forward))

    def _add_and_norm(self, name: str, output: str, residual: str) -> tuple[str, str]:
        normed, total = f"{name}.norm", f"{name}.residual"
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [output, residual, self._ones()],
            [normed, "", "", total],
            domain=MS,
            epsilon=self.spec.eps,
        )
        return normed, total

    def _rotated(self, rows: Array) -> Array:
        return self.weights.residual.apply(rows)

    def _ones(self) -> str:
        return self.graph.weight("norm.ones", np.ones(self.config.hidden, dtype=np.float32))
