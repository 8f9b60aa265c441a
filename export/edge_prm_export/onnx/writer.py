"""An ONNX graph written node by node, its weights streamed to one external file as they arrive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.manifest import FileEntry

MS = "com.microsoft"
OPSET = 21
IR_VERSION = 10
_INLINE_BYTES = 1024
_ALIGNMENT = 4096  # so that the engine can map each tensor


class WeightFile:
    """Appends tensors to one file and hashes it on the way, so that nothing is read twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115  closed by close()
        self._digest = hashlib.sha256()
        self._offset = 0

    def append(self, data: bytes | memoryview, alignment: int = _ALIGNMENT) -> int:
        """Write `data` at the next aligned offset and return the offset."""
        padding = -self._offset % alignment
        for piece in (b"\0" * padding, data):
            self._file.write(piece)
            self._digest.update(piece)
        start = self._offset + padding
        self._offset = start + len(data)
        return start

    def close(self) -> FileEntry:
        """Write everything to the disk and close the file; returns its hash and size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(self._digest.hexdigest(), self._offset)

    def abort(self) -> None:
        """Close the file as it is; nothing happens to one that is closed."""
        self._file.close()


class GraphWriter:
    """Collects nodes; `weight` hands an array to the WeightFile and keeps a reference only."""

    def __init__(self, weights: WeightFile) -> None:
        self._weights = weights
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._values: dict[str, tuple[str, tuple[int, ...], str]] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Add an input of the graph and return its name; a string in `shape` names a size that varies."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: Any, shape: Sequence[int | str]) -> None:
        """Add an output of the graph; a node must give it."""
        self._outputs.append(_value_info(name, dtype, shape))

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """A small constant, kept in the graph. ValueError for a name that has another value already."""
        from onnx import numpy_helper

        values = np.array(value, dtype=dtype)
        if not self._known(name, values):
            self._initializers[name] = numpy_helper.from_array(values, name)
        return name

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """A weight, written out at once, or not again under its name. ValueError for a name that has another value."""
        if values.nbytes <= _INLINE_BYTES:
            return self.constant(name, values, values.dtype)
        if self._known(name, values):
            return name
        streamed = self.stream(name, values.dtype, values.shape)
        streamed.write(values)
        return streamed.finish()

    def stream(self, name: str, dtype: Any, shape: tuple[int, ...]) -> _StreamedWeight:
        """A weight too large to hold, written piece by piece. ValueError for a name that has a value already."""
        if name in self._initializers:
            raise ValueError(f"weight {name!r} is in the graph already")
        return _StreamedWeight(self, name, np.dtype(dtype), shape)

    def node(
        self, op: str, inputs: Sequence[str], output: str | Sequence[str], *, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output."""
        from onnx import helper

        outputs = [output] if isinstance(output, str) else list(output)
        self._nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def copy(self, node: Any) -> None:
        """Add a node of another graph as it is."""
        self._nodes.append(node)

    def model(self, producer_version: str, opset: int = OPSET) -> bytes:
        """Return the serialized model; its weights are by reference to the WeightFile's name."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, "prm", self._inputs, self._outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, producer_name="edge-prm", producer_version=producer_version
        )
        model.ir_version = IR_VERSION
        return bytes(model.SerializeToString())

    def _known(self, name: str, values: npt.NDArray[Any]) -> bool:
        """Whether a name has this value already; ValueError when it has another one."""
        digest = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
        value = (values.dtype.str, values.shape, digest)
        if name not in self._initializers:
            self._values[name] = value
            return False
        if self._values.get(name) != value:
            raise ValueError(f"{name!r} is in the graph already, with another value")
        return True

    def _refer(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> None:
        from onnx import TensorProto, helper

        tensor = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=shape, data_location=TensorProto.EXTERNAL
        )
        length = int(np.prod(shape)) * dtype.itemsize
        for key, value in (("location", self._weights.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor


class _StreamedWeight:
    def __init__(self, graph: GraphWriter, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._graph, self._name, self._dtype, self._shape = graph, name, dtype, shape
        self._start = graph._weights.append(b"")

    def write(self, values: npt.NDArray[Any]) -> None:
        block = np.ascontiguousarray(values, dtype=self._dtype.newbyteorder("<"))
        self._graph._weights.append(block.data.cast("B"), alignment=1)

    def finish(self) -> str:
        self._graph._refer(self._name, self._dtype, self._shape, self._start)
        return self._name


def _value_info(name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
