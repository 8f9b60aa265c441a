"""The device's own limit: how fast one int8 matrix multiplication of the model's FFN shape runs."""

from __future__ import annotations

import time

import numpy as np

ROWS, INNER, COLUMNS = 512, 1536, 8960


def int8_gemm_gops(threads: int | None = None, repeats: int = 8) -> float:
    """Return billions of operations per second of DynamicQuantizeMatMul, best of `repeats` after a warm-up."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.integers(-127, 128, (INNER, COLUMNS)).astype(np.int8), "w"),
        numpy_helper.from_array(np.full(COLUMNS, 0.01, np.float32), "scale"),
    ]
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "scale"], ["y"], domain="com.microsoft")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, INNER])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, COLUMNS])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "gemm", [x], [y], weights), opset_imports=opsets)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        session.run(None, {"x": values})
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * INNER * COLUMNS / min(seconds[1:]) / 1e9
