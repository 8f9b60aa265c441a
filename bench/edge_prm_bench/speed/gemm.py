"""The device's own limit: the speed of matrix multiplication alone, in the shape of the 1.5B model's FFN."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_prm.arrays import Int8
from edge_prm.backends.onnx.providers import place_on
from edge_prm.backends.onnx.session import open_session
from edge_prm.backends.options import EngineOptions
from edge_prm.output import temporary_folder
from edge_prm.recipe import Recipe

ROWS, INNER, COLUMNS = 512, 1536, 8960
GPU_ROWS, GPU_PAIRS = 2048, 8
"""Rows of a run on a GPU, and pairs of multiplications one after the other: so many that their start costs nothing."""
CPU_ROWS = 64
_CLOCK_SECONDS = 1.0  # of work, until a GPU that was idle has raised its clock


@dataclass(frozen=True)
class Limit:
    """10^9 operations/s of the matrix multiplication of a kind (`int8` or `fp16`) on a device."""

    kind: str
    device: str
    gops: float


class Limits:
    """The limits of this machine's devices, each measured once; `measured` holds what was asked for.

    `int8`: the CPU's, which is measured already.
    """

    def __init__(self, int8: float | None = None) -> None:
        known = [] if int8 is None else [Limit("int8", "cpu", int8)]
        self.measured: dict[tuple[str, str], Limit] = {(limit.kind, limit.device): limit for limit in known}

    def of(self, recipe: Recipe, device: str, threads: int | None = None) -> Limit | None:
        """The limit of a recipe on a device; None for recipes and devices without a measured one (llama.cpp's)."""
        kind = "int8" if recipe.reducible else "fp16" if recipe.activations == "fp16" else None
        on_known = device == "cpu" or (kind == "fp16" and device.startswith("cuda"))
        if recipe.engine == "gguf" or kind is None or not on_known:
            return None
        if (kind, device) not in self.measured:
            gops = int8_gemm_gops(threads) if kind == "int8" else fp16_gemm_gops(device, threads)
            self.measured[kind, device] = Limit(kind, device, gops)
        return self.measured[kind, device]


def int8_gemm_gops(threads: int | None = None, repeats: int = 8) -> float:
    """10^9 operations/s of ONNX Runtime's DynamicQuantizeMatMul, the best of `repeats` runs after a warm-up.

    `[512, 1536] x [1536, 8960]`, float32 times int8; a multiplication and an addition count as two operations.
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (INNER, COLUMNS)).astype(np.int8)
    session = _session(_int8_model(weights), "cpu", threads)
    values = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    return 2 * ROWS * INNER * COLUMNS / _best(lambda: session.run(None, {"x": values}), repeats) / 1e9


def fp16_gemm_gops(device: str, threads: int | None = None, repeats: int = 8) -> float:
    """10^9 operations/s of ONNX Runtime's MatMul in fp16 on `cpu` or `cuda:N`, the best of `repeats` runs.

    `[2048, 1536] x [1536, 8960] x [8960, 1536]`, eight times in a row, with input and output on the device; on a CPU
    64 rows and once, because most CPUs have no arithmetic in fp16. Raises as `edge_prm.load` does for a device that
    ONNX Runtime does not have.
    """
    rows, pairs = (GPU_ROWS, GPU_PAIRS) if device != "cpu" else (CPU_ROWS, 1)
    session = _session(_fp16_model(rows, pairs), device, threads)
    values = np.random.default_rng(0).standard_normal((rows, INNER)).astype(np.float16)
    run = _bound(session, values, device)
    least = _CLOCK_SECONDS if device != "cpu" else 0.0
    return 2 * pairs * 2 * rows * INNER * COLUMNS / _best(run, repeats, least) / 1e9


def _best(run: Callable[[], Any], repeats: int, least_seconds: float = 0.0) -> float:
    """Seconds of the shortest of some runs after a warm-up, at least `repeats` runs and `least_seconds` together."""
    seconds: list[float] = []
    run()
    while len(seconds) < repeats or sum(seconds) < least_seconds:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _session(model: bytes, device: str, threads: int | None) -> Any:
    """An InferenceSession on a device, opened as that of a bundle is."""
    with temporary_folder("edge-prm-gemm-") as folder:
        path = folder / "gemm.onnx"
        path.write_bytes(model)
        return open_session(path, EngineOptions(threads), place_on(device))


def _bound(session: Any, values: Any, device: str) -> Callable[[], None]:
    """A run with input and output bound to the device's memory, which returns when the device has finished."""
    import onnxruntime

    kind, _, index = device.partition(":")
    binding = session.io_binding()
    on_device = onnxruntime.OrtValue.ortvalue_from_numpy(values, kind, int(index or 0))
    binding.bind_ortvalue_input("x", on_device)
    binding.bind_output("y", kind, int(index or 0))

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _int8_model(weights: Int8) -> bytes:
    """An ONNX model with one DynamicQuantizeMatMul by `weights`."""
    from onnx import TensorProto, helper, numpy_helper

    constants = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.full(COLUMNS, 0.01, np.float32), "scale"),
    ]
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "scale"], ["y"], domain="com.microsoft")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, INNER])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, COLUMNS])
    return _serialized([node], x, y, constants)


def _fp16_model(rows: int, pairs: int) -> bytes:
    """An ONNX model of `pairs` of MatMul in fp16, up and down; the size of the values stays the same."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {"up": (INNER, COLUMNS), "down": (COLUMNS, INNER)}
    constants = [
        numpy_helper.from_array(
            ((rng.random(shape, np.float32) - 0.5) * (12 / shape[0]) ** 0.5).astype(np.float16), name
        )
        for name, shape in weights.items()
    ]
    names = ["x", *(f"h{index}" for index in range(1, 2 * pairs)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[index], ("up", "down")[index % 2]], [names[index + 1]])
        for index in range(2 * pairs)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [rows, INNER])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [rows, INNER])
    return _serialized(nodes, x, y, constants)


def _serialized(nodes: list[Any], x: Any, y: Any, constants: list[Any]) -> bytes:
    from onnx import helper

    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "gemm", [x], [y], constants), opset_imports=opsets)
    model.ir_version = 10
    serialized: bytes = model.SerializeToString()
    return serialized
