"""The device's own limit: the speed of one int8 matrix multiplication, in the shape of the 1.5B model's FFN."""

from __future__ import annotations

import time

import numpy as np

from edge_prm.arrays import Int8

ROWS, INNER, COLUMNS = 512, 1536, 8960


def int8_gemm_gops(threads: int | None = None, repeats: int = 8) -> float:
    """10^9 operations/s of ONNX Runtime's DynamicQuantizeMatMul, the best of `repeats` runs after a warm-up.

    `[512, 1536] x [1536, 8960]`, float32 times int8; a multiplication and an addition count as two operations.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (INNER, COLUMNS)).astype(np.int8)
    session = onnxruntime.InferenceSession(_model(weights), options, providers=["CPUExecutionProvider"])
    values = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        session.run(None, {"x": values})
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * INNER * COLUMNS / min(seconds[1:]) / 1e9


def _model(weights: Int8) -> bytes:
    """An ONNX model with one DynamicQuantizeMatMul by `weights`."""
    from onnx import TensorProto, helper, numpy_helper

    constants = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.full(COLUMNS, 0.01, np.float32), "scale"),
    ]
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "scale"], ["y"], domain="com.microsoft")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, INNER])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, COLUMNS])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "gemm", [x], [y], constants), opset_imports=opsets)
    model.ir_version = 10
    serialized: bytes = model.SerializeToString()
    return serialized
