"""Failures of ONNX Runtime that have a cause and a remedy of their own, told apart by the text of its exceptions.

ONNX Runtime's exceptions have no common base and no code that says what happened on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_prm.errors import BackendError, DeviceMemoryError, MissingKernelsError


@dataclass(frozen=True)
class _Failure:
    """`pattern` finds it in the engine's message; `error` is raised; `sentence` has the cause and the remedy."""

    pattern: str
    error: type[BackendError]
    sentence: str


_FAILURES = (
    _Failure(
        r"no kernel image|NoKernelImageForDevice|CUDA failure 209|CUBLAS_STATUS_ARCH_MISMATCH",
        MissingKernelsError,
        "this build of ONNX Runtime has no kernels for this GPU's compute capability (8.7, sm_87, of a Jetson Orin); "
        "install a wheel that was built for it, export the checkpoint with --gguf and build llama-cpp-python for the "
        "GPU, or choose device 'cpu'",
    ),
    _Failure(
        r"UnsupportedPtxVersion|CUDA failure 222|InsufficientDriver|CUDA failure 35\b|driver version is insufficient",
        MissingKernelsError,
        "the driver of this GPU is older than the CUDA that this build of ONNX Runtime needs; update the driver, "
        "install a wheel for an older CUDA, or choose device 'cpu'",
    ),
    _Failure(
        r"out of memory|Failed to allocate memory|bad_alloc|bad allocation|CUBLAS_STATUS_ALLOC_FAILED|CUDA failure 2\b",
        DeviceMemoryError,
        "the device has too little free memory; close sessions and other programs that use it, score shorter texts, or "
        "export the checkpoint with fewer bits (--int8 or --int4)",
    ),
    _Failure(
        r"invalid device ordinal|CUDA failure 101\b|no CUDA-capable device|CUDA failure 100\b",
        BackendError,
        "there is no GPU of that number; `edge-prm doctor` lists those that are there",
    ),
)
"""The first that matches counts. Names and numbers are those of CUDA's cudaError_t."""


def failed(what: str, error: Exception) -> BackendError:
    """The error to raise for a failure: what failed, cause and remedy where they are known, the engine's own words."""
    message = " ".join(str(error).split()) or type(error).__name__
    for failure in _FAILURES:
        if re.search(failure.pattern, message, re.IGNORECASE) or (
            failure.error is DeviceMemoryError and isinstance(error, MemoryError)
        ):
            return failure.error(f"{what}: {failure.sentence} ({message})")
    return BackendError(f"{what}: {message}")
