"""The reward head as nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.head import HEADS
from edge_prm_export.onnx.writer import GraphWriter

Array = npt.NDArray[np.floating[Any]]


def add_head(graph: GraphWriter, kind: str, layers: Sequence[tuple[Array, Array]], rows: str) -> None:
    """The reward head on `rows` `[r, hidden]`, in fp32: its linears, then sigmoid of the one output or softmax's second
    class; gives the graph's output `rewards` `[r]`."""
    value = rows
    for index, (weight, bias) in enumerate(layers):
        if index:
            value = graph.node("Relu", [value], f"head.{index}.relu")
        columns = graph.weight(f"head.{index}.weight", np.ascontiguousarray(weight.astype(np.float32).T))
        product = graph.node("MatMul", [value, columns], f"head.{index}.product")
        value = graph.node("Add", [product, graph.weight(f"head.{index}.bias", bias)], f"head.{index}")
    if HEADS[kind].outputs == 1:
        value = graph.node("Sigmoid", [value], "probability")
    else:
        classes = graph.node("Softmax", [value], "classes", axis=-1)
        value = graph.node("Gather", [classes, graph.constant("class.1", [1], np.int64)], "probability", axis=1)
    graph.node("Reshape", [value, graph.constant("flat", [-1], np.int64)], "rewards")
