"""optimum's graph of a language model -> graph of a PRM: its last multiplication cut off, our head and recipe put in.

What optimum exports ends in logits. Cut behind the final norm, only read positions go on, into the reward head; what
led to logits alone falls away. Under `int8`, every multiplication with a weight becomes one of integers (rows spread in
blocks, a scale for each row: see linears.py), those of one input quantize it once; the embedding is held in int8.
Everything else is optimum's, node for node.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError
from edge_prm_export.graph import GraphWriter
from edge_prm_export.head import RewardHead
from edge_prm_export.linears import Int8Linears
from edge_prm_export.to_onnx import add_head

Array = npt.NDArray[np.floating[Any]]

LOGITS = "logits"
_TWO_TERMS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
"""What goes into queries, keys and values is written as two 8-bit terms, since attention magnifies an error there."""
_EMBEDDING_BLOCK_ROWS = 8192
_ROWS, _LIKE_BEFORE = "edge_prm.rows", "edge_prm.shape"


class Rewriter:
    """Copies a loaded model (its weights still on disk, beside `folder`) into a GraphWriter."""

    def __init__(self, model: Any, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._graph = model.graph
        self.opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._initializers = {tensor.name: tensor for tensor in self._graph.initializer}
        self._made_by = {output: node for node in self._graph.node for output in node.output}

    def write(self, target: GraphWriter, head: RewardHead, linears: Int8Linears | None) -> Iterator[str]:
        """Write the whole graph; yields the name of each node. `linears` None leaves it in fp32."""
        hidden = self._hidden_states()
        kept = self._needed([hidden, *self._cache_outputs()])
        self._copy_ends(target)
        groups = self._groups(kept) if linears is not None else {}
        members = {node.output[0] for nodes in groups.values() for node in nodes}
        done: set[str] = set()
        for node in kept:
            yield node.name
            if linears is not None and node.output[0] in members:
                if node.input[0] not in done:
                    done.add(node.input[0])
                    self._integers(target, linears, node.input[0], groups[node.input[0]])
                continue
            if linears is not None and self._is_embedding(node):
                self._int8_embedding(target, linears, node)
                continue
            for name in node.input:
                self._weight(target, name)
            self._bring_along(node)
            target.copy(node)
        width = head.layers[0][0].shape[1]
        read = target.node("Gather", [hidden, "read_at"], "hidden.read", axis=1)
        rows = target.node("Reshape", [read, target.constant("hidden.shape", [-1, width], np.int64)], "hidden.rows")
        add_head(target, head.kind, head.layers, rows)

    def _hidden_states(self) -> str:
        """What goes into the multiplication with the output matrix; between it and the logits stand single inputs."""
        value = LOGITS
        while (node := self._made_by.get(value)) is not None:
            if node.op_type in ("MatMul", "Gemm") and self._is_matrix(node.input[1]):
                return str(node.input[0])
            value = next((name for name in node.input if name in self._made_by), "")
        raise CheckpointError(f"checkpoint {self._name}: optimum's graph has no output matrix in front of its logits")

    def _cache_outputs(self) -> list[str]:
        return [output.name for output in self._graph.output if output.name != LOGITS]

    def _needed(self, outputs: list[str]) -> list[Any]:
        """The nodes that outputs depend on, in the graph's order."""
        wanted, stack = set(), list(outputs)
        while stack:
            node = self._made_by.get(stack.pop())
            if node is not None and id(node) not in wanted:
                wanted.add(id(node))
                stack += node.input
        return [node for node in self._graph.node if id(node) in wanted]

    def _copy_ends(self, target: GraphWriter) -> None:
        for value in self._graph.input:
            if value.name not in self._initializers:
                target.input(value.name, *_type(value))
        target.input("read_at", np.int64, ["r"])
        target.output("rewards", np.float32, ["r"])
        for value in self._graph.output:
            if value.name != LOGITS:
                target.output(value.name, *_type(value))

    def _groups(self, kept: list[Any]) -> dict[str, list[Any]]:
        """Multiplications with weights, by their input."""
        groups: dict[str, list[Any]] = {}
        for node in kept:
            if node.op_type == "MatMul" and self._is_matrix(node.input[1]) and node.input[0] not in self._initializers:
                groups.setdefault(node.input[0], []).append(node)
        return groups

    def _integers(self, target: GraphWriter, linears: Int8Linears, rows: str, nodes: list[Any]) -> None:
        width = self._initializers[nodes[0].input[1]].dims[0]
        flat = target.node(
            "Reshape", [rows, target.constant(f"{_ROWS}.{width}", [-1, width], np.int64)], f"{rows}.rows"
        )
        by_terms: dict[bool, list[Any]] = {}
        for node in nodes:
            by_terms.setdefault(any(part in node.name for part in _TWO_TERMS), []).append(node)
        for two_terms, members in by_terms.items():
            weights = {f"{node.output[0]}.rows": self._reader(node.input[1]) for node in members}
            linears.any_rows(f"{rows}.{1 + two_terms}", flat, weights, two_terms=two_terms)
        for node in nodes:
            outputs = self._initializers[node.input[1]].dims[1]
            shape = target.constant(f"{_LIKE_BEFORE}.{outputs}", [1, -1, outputs], np.int64)
            target.node("Reshape", [f"{node.output[0]}.rows", shape], node.output[0])

    def _reader(self, name: str) -> Any:
        """The weight `[out, in]` that is stored as `[in, out]`, read when it is wanted."""
        return lambda: self._read(name).T

    def _is_embedding(self, node: Any) -> bool:
        ids = self._made_by.get(node.input[1]) if len(node.input) > 1 else None
        from_ids = len(node.input) > 1 and ("input_ids" in (node.input[1], *(ids.input if ids is not None else ())))
        return node.op_type == "Gather" and self._is_matrix(node.input[0]) and from_ids

    def _int8_embedding(self, target: GraphWriter, linears: Int8Linears, node: Any) -> None:
        table = self._read(node.input[0])
        blocks = (table[start : start + _EMBEDDING_BLOCK_ROWS] for start in range(0, len(table), _EMBEDDING_BLOCK_ROWS))
        name = linears.embedding("embedding", node.input[1], blocks, table.shape)
        target.node("Identity", [name], node.output[0])

    def _is_matrix(self, name: str) -> bool:
        tensor = self._initializers.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == 1  # float

    def _weight(self, target: GraphWriter, name: str) -> None:
        if name in self._initializers:
            target.weight(name, self._read(name))

    def _read(self, name: str) -> Any:
        return self._array(self._initializers[name])

    def _bring_along(self, node: Any) -> None:
        """Tensors of a node's attributes, which a large model leaves outside the graph too, into the node."""
        from onnx import numpy_helper

        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.external_data:
                attribute.t.CopyFrom(numpy_helper.from_array(self._array(attribute.t)))

    def _array(self, tensor: Any) -> Any:
        from onnx import numpy_helper

        return numpy_helper.to_array(tensor, str(self._folder))


def _type(value: Any) -> tuple[Any, list[int | str]]:
    """numpy dtype and shape of a graph's input or output; what has no name and no size may be anything."""
    from onnx import helper

    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value or f"{value.name}.{axis}" for axis, dim in enumerate(tensor.shape.dim)]
    return helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape
