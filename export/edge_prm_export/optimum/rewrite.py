"""optimum's graph of a language model -> graph of a PRM: its last multiplication cut off, our head and recipe put in.

What optimum exports ends in logits. Cut after the final norm, only read positions go on, into the reward head; what
led to logits alone falls away. Of a token pair, the two logits are kept with all that the model does to them. Under
`int8`, every multiplication with a weight becomes one of integers (rows spread in blocks, a scale for each row: see
linears.py), those of one input quantize it once; the embedding is held in int8. Everything else is optimum's, node for
node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError
from edge_prm.head import Head
from edge_prm_export.onnx.head import add_head
from edge_prm_export.onnx.int8 import Int8Linears
from edge_prm_export.onnx.writer import GraphWriter

Array = npt.NDArray[np.floating[Any]]

LOGITS = "logits"
_HI_LO = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
"""What enters queries, keys and values is split into two 8-bit parts (hi and lo): attention magnifies errors there."""
_BY_ELEMENT = ("Add", "Cast", "Clip", "Div", "Identity", "Mul", "Neg", "Sub", "Tanh")
"""What a model may do to its logits that can be done to two of them alone."""
_EMBEDDING_BLOCK_ROWS = 8192
_ROWS, _LIKE_BEFORE = "edge_prm.rows", "edge_prm.shape"


class Rewriter:
    """Copies a loaded model (its weights still on disk, in `folder`) into a GraphWriter."""

    def __init__(self, model: Any, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._graph = model.graph
        self.opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._initializers = {tensor.name: tensor for tensor in self._graph.initializer}
        self._made_by = {output: node for node in self._graph.node for output in node.output}

    def write(
        self, target: GraphWriter, head: Head, linears: Int8Linears | None, pair: Sequence[int] = ()
    ) -> Iterator[str]:
        """Write the whole graph; yields the name of each node. `linears` None leaves it in fp32.

        `pair`: the two token ids, bad and good, whose logits are a token_pair head.
        """
        output, after = self._output_matrix()
        hidden = str(output.input[0])
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
        if pair:
            add_head(target, head.kind, (), self._pair_of_logits(target, rows, output, after, list(pair)))
        else:
            add_head(target, head.kind, head.layers, rows)

    def _output_matrix(self) -> tuple[Any, list[Any]]:
        """The multiplication with the output matrix, and the nodes from there to the logits, in their order."""
        value = LOGITS
        after: list[Any] = []
        while (node := self._made_by.get(value)) is not None:
            if node.op_type in ("MatMul", "Gemm") and self._is_matrix(node.input[1]):
                return node, after[::-1]
            after.append(node)
            value = next((name for name in node.input if self._constant(name) is None), "")
        raise CheckpointError(f"checkpoint {self._name}: optimum's graph has no output matrix in front of its logits")

    def _pair_of_logits(self, target: GraphWriter, rows: str, output: Any, after: list[Any], pair: list[int]) -> str:
        """The logits `[r, 2]` of two tokens, with all that the model does to its logits: scales, a cap, a bias."""
        matrix = self._read(output.input[1])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in output.attribute)
        columns = np.ascontiguousarray(matrix[pair].T if transposed else matrix[:, pair])
        vocabulary = matrix.shape[0 if transposed else 1]
        value = target.node("MatMul", [rows, target.weight("pair.weight", columns)], "pair.product")
        if len(output.input) > 2:
            bias = self._of_pair(output.input[2], vocabulary, pair)
            value = target.node("Add", [value, target.weight("pair.bias", bias)], "pair.biased")
        made = output.output[0]
        for index, node in enumerate(after):
            if node.op_type not in _BY_ELEMENT:
                raise CheckpointError(
                    f"checkpoint {self._name}: between its output matrix and its logits is a {node.op_type}, and only "
                    f"{', '.join(_BY_ELEMENT)} are understood there; a token pair cannot be read"
                )
            inputs = [
                value if name == made else target.weight(f"pair.{index}.{at}", self._of_pair(name, vocabulary, pair))
                for at, name in enumerate(node.input)
            ]
            copied = type(node)()
            copied.CopyFrom(node)
            del copied.input[:], copied.output[:]
            made, value = node.output[0], f"pair.{index}"
            copied.input.extend(inputs)
            copied.output.append(value)
            copied.name = value
            target.copy(copied)
        return value

    def _of_pair(self, name: str, vocabulary: int, pair: list[int]) -> Any:
        """A constant of the logits, for the two tokens: a number as it is, of one for each token those two."""
        values = self._constant(name, read=True)
        if values is not None and values.size == 1:
            return values.reshape(-1)
        if values is not None and values.shape[-1:] == (vocabulary,) and values.size == vocabulary:
            return np.ascontiguousarray(values.reshape(-1)[pair])
        raise CheckpointError(
            f"checkpoint {self._name}: its logits depend on {name}, which is neither a number nor one for each token; "
            "a token pair cannot be read"
        )

    def _constant(self, name: str, *, read: bool = False) -> Any:
        """The value of an initializer or a Constant (True where it is not to be read), None of what is computed."""
        if name in self._initializers:
            return self._read(name) if read else True
        node = self._made_by.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return self._array(node.attribute[0].t) if read else True

    def _cache_outputs(self) -> list[str]:
        return [output.name for output in self._graph.output if output.name != LOGITS]

    def _needed(self, outputs: list[str]) -> list[Any]:
        """The nodes that outputs depend on, in the graph's order."""
        wanted: set[str] = set()
        stack = list(outputs)
        while stack:
            node = self._made_by.get(stack.pop())
            if node is not None and node.output[0] not in wanted:  # protobuf makes a new wrapper at each access
                wanted.add(node.output[0])
                stack += node.input
        return [node for node in self._graph.node if node.output[0] in wanted]

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
        by_parts: dict[bool, list[Any]] = {}
        for node in nodes:
            by_parts.setdefault(any(part in node.name for part in _HI_LO), []).append(node)
        for hi_lo, members in by_parts.items():
            weights = {f"{node.output[0]}.rows": self._reader(node.input[1]) for node in members}
            linears.linear_dynamic(f"{rows}.{1 + hi_lo}", flat, weights, hi_lo=hi_lo)
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
