"""The graph by which the runtime copies keys and values on a device: `python -m edge_prm_export.onnx.resize`.

It is part of the runtime's package, which has no `onnx`, so this program writes it there.
"""

from __future__ import annotations

from pathlib import Path

import edge_prm
from edge_prm_export.onnx.writer import IR_VERSION, OPSET

PATH = Path(edge_prm.__file__).parent / "backends" / "onnx" / "resize_fp16.onnx"


def resize_model() -> bytes:
    """past `[b, heads, capacity, d]`, keep `[1]`, pads `[8]` -> resized: past[:, :, :keep] followed by zeros."""
    from onnx import TensorProto, helper

    sizes = ["b", "heads", "capacity", "d"]
    constants = [
        helper.make_tensor("start", TensorProto.INT64, [1], [0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
    ]
    nodes = [
        helper.make_node("Slice", ["past", "start", "keep", "axis"], ["kept"]),
        helper.make_node("Pad", ["kept", "pads"], ["resized"]),
    ]
    inputs = [
        helper.make_tensor_value_info("past", TensorProto.FLOAT16, sizes),
        helper.make_tensor_value_info("keep", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("pads", TensorProto.INT64, [8]),
    ]
    outputs = [helper.make_tensor_value_info("resized", TensorProto.FLOAT16, ["b", "heads", "room", "d"])]
    graph = helper.make_graph(nodes, "resize", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edge-prm")
    model.ir_version = IR_VERSION
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    PATH.write_bytes(resize_model())
