"""Checkpoint -> ONNX graph of a PRM of any family, reward head included.

    input_ids [s], read_at [r], offset [1], past keys and values  ->  rewards [r], present keys and values

`offset` tokens are in the cache already; `read_at` are indices into `input_ids`, in any order. Graphs for a GPU take
several sequences (see `interface.py`). Everything after the last layer's attention is computed at the read positions
only, since no other token's output is read; a recipe may compute them apart in more of the last layers (`Streams`).
Norm weights are folded into the linear layers after them; how a recipe multiplies is in `linears.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

import edge_prm
from edge_prm.backends.onnx.native import LAST_POSITION, MODEL_NAME, TOTAL_LENGTH
from edge_prm.head import Head
from edge_prm_export.calibration.golden import encode_texts
from edge_prm_export.calibration.own import differentiated_texts, own_texts
from edge_prm_export.decoder.gradient import reward_derivatives
from edge_prm_export.decoder.layers import LayerInputs, LayerWeights, Norms, ResidualDerivatives
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.rope import rope_tables
from edge_prm_export.decoder.source import TensorSource
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.job import ExportJob, ExportResult, file_entry
from edge_prm_export.onnx.head import add_head
from edge_prm_export.onnx.interface import interface_of
from edge_prm_export.onnx.linears import FeedForward, Linears, Streams
from edge_prm_export.onnx.recipes import linears_of
from edge_prm_export.onnx.writer import MS, GraphWriter, WeightFile

WEIGHTS_NAME = "model.onnx.data"


def write_model(job: ExportJob) -> ExportResult:
    """Write the graph and its weights; on the way, the golden texts are scored in full precision."""
    folder, checkpoint, head, golden = job.folder, job.checkpoint, job.head, job.golden
    (recipe,) = job.recipes
    calibration = encode_texts(job.encoder, own_texts(recipe))
    derivatives = _derivatives(job)
    reference = ReferenceRun(checkpoint, [encoded for *_, encoded in golden + calibration])
    weights = WeightFile(folder / WEIGHTS_NAME)
    try:
        graph = GraphWriter(weights)
        linears = linears_of(graph, recipe)
        with job.progress(f"writing {recipe.name} layers", checkpoint.config.layers) as advance:
            for _ in write_graph(graph, checkpoint, head, linears, reference, derivatives):
                advance(1)
        (folder / MODEL_NAME).write_bytes(graph.model(edge_prm.__version__))
        files = {WEIGHTS_NAME: weights.close(), MODEL_NAME: file_entry(folder / MODEL_NAME)}
    finally:
        weights.abort()
    return ExportResult(
        recipe.with_weights(wide=tuple(linears.wide)),
        files,
        [reference.rewards(head, index, text.read_at) for index, (*_, text) in enumerate(golden)],
    )


def _derivatives(job: ExportJob) -> list[ResidualDerivatives]:
    """Those of the recipe's texts, layer by layer; none where the recipe does not need any."""
    texts = [encoded for *_, encoded in encode_texts(job.encoder, differentiated_texts(job.recipes[0]))]
    if not texts:
        return []
    with job.progress("differentiating rewards", 2 * job.checkpoint.config.layers) as advance:
        return reward_derivatives(job.checkpoint, job.head, texts, advance)


def write_graph(
    graph: GraphWriter,
    source: TensorSource,
    head: Head,
    linears: Linears,
    reference: ReferenceRun,
    derivatives: Sequence[ResidualDerivatives] = (),
) -> Iterator[int]:
    """Write the graph, layer by layer along with a run in full precision that shows what enters each linear layer.

    `derivatives`: of each layer, for recipes that use them. Yields the number of each layer when it is written; at the
    end the reference run has its rewards too.
    """
    yield from _Decoder(graph, source, linears).write(head, reference, derivatives)


class _Decoder:
    def __init__(self, graph: GraphWriter, source: TensorSource, linears: Linears) -> None:
        self.graph = graph
        self.spec = source.spec
        self.shapes = source.spec.shapes
        self.linears = linears
        self.interface = interface_of(graph, linears.dtype)
        self.decoder = TransformedDecoder(source, linears.transforms(self.shapes))

    def write(self, head: Head, reference: ReferenceRun, derivatives: Sequence[ResidualDerivatives]) -> Iterator[int]:
        """Write all nodes and weights; yields the number of each layer when it is written."""
        graph, layers = self.graph, self.shapes.layers
        residual = Streams(self.linears.embed("embedding", self._inputs(), self.decoder))
        normed = Streams(self._norm(residual.all_rows, self._ones(), "norm.0"))
        first_read = layers - self.linears.read_layers(layers)
        for index in range(layers):
            found = replace(reference.run_layer(index), derivatives=derivatives[index] if derivatives else None)
            inputs = self.decoder.inputs(index, found)
            layer = self.decoder.layer(index)
            attended = Streams(self._attention(index, normed.all_rows, layer, inputs))
            if index == first_read:
                residual = residual._replace(read=self._read(residual.all_rows, "residual.read"))
            if index >= first_read:
                attended = attended._replace(read=self._read(attended.all_rows, f"layer.{index}.attention.read"))
            if index + 1 == layers:
                attended, residual = attended._replace(all_rows=""), residual._replace(all_rows="")
            output = self.linears.attention_output(f"layer.{index}.output", attended, layer.o, inputs)
            normed, residual = self._add_and_norm(f"layer.{index}.middle", output, residual)
            weights = FeedForward(layer.gate, layer.up, layer.down, inputs, index / layers)
            output = self.linears.feed_forward(f"layer.{index}.mlp", normed, weights)
            normed, residual = self._add_and_norm(f"layer.{index}.end", output, residual)
            yield index
        read = normed.read
        if self.linears.dtype != np.float32:  # the head is in fp32 in every recipe
            read = graph.node("Cast", [read], "normed.float", to=1)
        first, *rest = head.layers
        add_head(graph, head.kind, ((self.decoder.head(first[0]), first[1]), *rest), read)

    def _read(self, rows: str, name: str) -> str:
        """Those of the read positions among `rows`."""
        return self.graph.node("Gather", [rows, "read_at"], name, axis=0)

    def _inputs(self) -> str:
        """Declare inputs and outputs of the graph; returns the token ids of all rows."""
        graph, shapes, dtype = self.graph, self.shapes, self.linears.dtype
        ids, batch = self.interface.ids(), self.interface.batch
        graph.output("rewards", np.float32, ["r"])
        for index in range(shapes.layers):
            for part in ("key", "value"):
                graph.input(f"past_{part}.{index}", dtype, [batch, shapes.kv_heads, "past", shapes.head_dim])
                graph.output(f"present_{part}.{index}", dtype, [batch, shapes.kv_heads, "present", shapes.head_dim])
        # One position more than the context: a run may compute one token after the last (see backends/onnx/native.py).
        cos, sin = rope_tables(self.spec.rope, shapes.head_dim, shapes.context_length + 1)
        graph.weight("rotary.cos", cos.astype(dtype))
        graph.weight("rotary.sin", sin.astype(dtype))
        return ids

    def _attention(self, index: int, normed: str, layer: LayerWeights, inputs: LayerInputs) -> str:
        """Query, key and value in one multiplication; rotary embedding and cache inside the attention operator."""
        graph, shapes, name = self.graph, self.shapes, f"layer.{index}.qkv"
        packed = self.linears.attention_input(name, normed, (layer.q, layer.k, layer.v), inputs)
        attended = graph.node(
            "GroupQueryAttention",
            [
                *self._queries_keys_values(name, packed, layer.norms),
                *(f"past_key.{index}", f"past_value.{index}"),
                *(LAST_POSITION, TOTAL_LENGTH, "rotary.cos", "rotary.sin"),
            ],
            [f"layer.{index}.attention", f"present_key.{index}", f"present_value.{index}"],
            domain=MS,
            num_heads=shapes.heads,
            kv_num_heads=shapes.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        width = graph.constant("attention.shape", [-1, shapes.query_width], np.int64)
        return graph.node("Reshape", [attended, width], f"layer.{index}.attention.rows")

    def _queries_keys_values(self, name: str, packed: str, norms: Norms) -> tuple[str, str, str]:
        """The operator's three inputs `[1, s, width]`: all in the first, or apart where heads have norms of their own.

        The operator rotates queries and keys itself, so their norms come before it.
        """
        graph, shapes = self.graph, self.shapes
        if norms.q is None or norms.k is None:
            width = shapes.query_width + 2 * shapes.key_width
            return self.interface.batched(packed, width, f"{name}.batched"), "", ""
        widths = [shapes.query_width, shapes.key_width, shapes.key_width]
        parts = [f"{name}.{part}" for part in "qkv"]
        graph.node("Split", [packed, graph.constant("qkv.widths", widths, np.int64)], parts, axis=1)
        heads = graph.constant("head.shape", [-1, shapes.head_dim], np.int64)
        for at, weight in ((0, norms.q), (1, norms.k)):
            rows = graph.node("Reshape", [parts[at], heads], f"{parts[at]}.heads")
            scale = graph.weight(f"{parts[at]}.norm.weight", weight.astype(self.linears.dtype))
            parts[at] = self._norm(rows, scale, f"{parts[at]}.norm")
        query, key, value = (
            self.interface.batched(part, width, f"{name}.{letter}.batched")
            for part, width, letter in zip(parts, widths, "qkv", strict=True)
        )
        return query, key, value

    def _norm(self, rows: str, weight: str, name: str) -> str:
        """RMSNorm of the last axis."""
        return self.graph.node(
            "SimplifiedLayerNormalization", [rows, weight], name, axis=-1, epsilon=self.spec.eps, stash_type=1
        )

    def _add_and_norm(self, name: str, output: Streams, residual: Streams) -> tuple[Streams, Streams]:
        def add(suffix: str, rows: str) -> str:
            inputs = [rows, residual.read if suffix else residual.all_rows, self._ones()]
            outputs = [f"{name}{suffix}.norm", "", "", f"{name}{suffix}.residual"]
            op = "SkipSimplifiedLayerNormalization"
            return self.graph.node(op, inputs, outputs, domain=MS, epsilon=self.spec.eps)

        normed = output.each(add)
        return normed, output.each(lambda suffix, _: f"{name}{suffix}.residual")

    def _ones(self) -> str:
        return self.graph.weight("norm.ones", np.ones(self.shapes.hidden, dtype=self.linears.dtype))
