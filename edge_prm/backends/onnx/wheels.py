"""Which wheels of ONNX Runtime are installed. All of them are the module `onnxruntime`, so there can be one only."""

from __future__ import annotations

import importlib.metadata
import re

MODULE = "onnxruntime"
PROVIDER_WHEELS = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml",
    "CoreMLExecutionProvider": "onnxruntime",  # on macOS
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
}
"""Execution provider -> the distribution on PyPI that has it."""


def wheels() -> dict[str, str]:
    """Installed distributions that provide the module, by name, with their versions.

    Empty where the module is there and no distribution says so, as in a build of one's own.
    """
    names = importlib.metadata.packages_distributions().get(MODULE, ())
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    return {name: importlib.metadata.version(name) for name in sorted(normal)}


def conflict() -> str | None:
    """What is wrong, and the remedy, where several wheels overwrite each other's files; None where that is not so."""
    found = wheels()
    if len(found) < 2:
        return None
    gpu = next((name for name in found if name != MODULE), MODULE)
    other = "" if gpu == MODULE else f" (or, for CPUs only, {MODULE})"
    return (
        f"{' and '.join(found)} are one module, {MODULE}, and overwrite each other's files; keep one: "
        f"{replaced_by(gpu)}{other}"
    )


def installed() -> str:
    """What is installed, for messages: `installed: onnxruntime 1.32.0`, and what is wrong with it."""
    listed = ", ".join(f"{name} {version}" for name, version in wheels().items()) or "no wheel that pip knows"
    wrong = conflict()
    return f"installed: {listed}" + (f"; {wrong}" if wrong else "")


def replaced_by(wheel: str) -> str:
    """The commands that leave `wheel` as the only one: an uninstall takes files that the others share with it."""
    found = list(wheels())
    remove = f"pip uninstall -y {' '.join(found)} && " if found and found != [wheel] else ""
    return f"{remove}pip install {wheel}"
