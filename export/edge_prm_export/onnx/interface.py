"""The inputs of a graph, and how its rows `[s, width]` become the batches that the attention operator takes.

Graphs for a CPU run one sequence at a time. Those for a GPU run several of equal length, padded on the right, and get
as inputs what the attention operator needs to know, so that the device computes no lengths.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from edge_prm.backends.onnx.native import LAST_POSITION, TOTAL_LENGTH
from edge_prm_export.onnx.writer import GraphWriter


class Interface(Protocol):
    """What the decoder needs. After `ids`, the graph has two values: LAST_POSITION, int32 `[b]`, the position of the
    last token, and TOTAL_LENGTH, int32 `[1]`, the tokens of the longest sequence."""

    def ids(self) -> str:
        """Declare `input_ids`, `read_at` and the lengths; returns the token ids of all rows, int64 `[s]`."""

    def batched(self, rows: str, width: int, name: str) -> str:
        """Rows `[b * s, width]` as `[b, s, width]`, with b = 1 for one sequence."""

    @property
    def batch(self) -> int | str:
        """The first size of keys and values."""


class OneSequence:
    """`input_ids` `[s]`, `offset` `[1]`: the tokens that the cache holds already."""

    batch = 1

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph

    def ids(self) -> str:
        """Declare the inputs, and compute the lengths from them."""
        graph = self._graph
        graph.input("input_ids", np.int64, ["s"])
        graph.input("read_at", np.int64, ["r"])
        graph.input("offset", np.int32, [1])
        length = graph.node("Cast", [graph.node("Shape", ["input_ids"], "length.int64")], "length", to=6)  # int32
        graph.node("Add", ["offset", length], TOTAL_LENGTH)
        graph.node("Sub", [TOTAL_LENGTH, graph.constant("one.int32", [1], np.int32)], LAST_POSITION)
        return "input_ids"

    def batched(self, rows: str, width: int, name: str) -> str:
        """A batch of one."""
        shape = self._graph.constant(f"batch.{width}", [1, -1, width], np.int64)
        return self._graph.node("Reshape", [rows, shape], name)


class Batch:
    """`input_ids` `[b, s]`, and the lengths as inputs."""

    batch = "b"

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph

    def ids(self) -> str:
        """Declare the inputs."""
        graph = self._graph
        graph.input("input_ids", np.int64, ["b", "s"])
        graph.input("read_at", np.int64, ["r"])
        graph.input(LAST_POSITION, np.int32, ["b"])
        graph.input(TOTAL_LENGTH, np.int32, [1])
        graph.node("Shape", ["input_ids"], "batch.shape")
        flat = graph.constant("flat", [-1], np.int64)
        return graph.node("Reshape", ["input_ids", flat], "ids")

    def batched(self, rows: str, width: int, name: str) -> str:
        """The shape of `input_ids`, and the width."""
        size = self._graph.constant(f"width.{width}", [width], np.int64)
        shape = self._graph.node("Concat", ["batch.shape", size], f"{name}.shape", axis=0)
        return self._graph.node("Reshape", [rows, shape], name)


def interface_of(graph: GraphWriter, dtype: type[np.floating[Any]]) -> Interface:
    """The interface of a graph whose activations have a type: fp16 is for GPUs."""
    return OneSequence(graph) if dtype == np.float32 else Batch(graph)
