"""Which execution provider of ONNX Runtime runs a bundle, and on which device. What is missing is an error."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_prm.backends.guest import log_fallback
from edge_prm.backends.options import EngineOptions, device_of
from edge_prm.errors import BackendError, InputError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""Names that users know -> ONNX Runtime's. Another name of ONNX Runtime's own is taken as it is."""
PROVIDER_OPTION = "provider."
"""Engine options whose names begin so are options of the execution provider."""


@dataclass(frozen=True)
class Placement:
    """Where a session runs. `memory`: ONNX Runtime's name of the device that holds keys and values."""

    provider: str = CPU
    options: Mapping[str, str] = field(default_factory=dict)
    memory: str = "cpu"
    index: int = 0

    @property
    def providers(self) -> list[Any]:
        """The argument of InferenceSession: the CPU takes the nodes that the provider does not."""
        chosen = (self.provider, dict(self.options))
        return [chosen] if self.provider == CPU else [chosen, CPU]


def place(options: EngineOptions, recipe_devices: tuple[str, ...]) -> Placement:
    """The placement that options ask for; `recipe_devices` are those of the bundle's recipe.

    InputError for a provider that the installed ONNX Runtime does not have. `auto` takes CUDA where the recipe is for
    it and it is there, and logs why where it is not.
    """
    own = {name[len(PROVIDER_OPTION) :]: str(value) for name, value in _provider_options(options).items()}
    if options.provider is not None:
        return _named(options.provider, own)
    device, index = device_of(options.device)
    if device == "cpu":
        return Placement(options=own)
    if device == "auto" and "cuda" not in recipe_devices:
        log_fallback("the bundle's recipe is for CPUs")
        return Placement(options=own)
    if CUDA not in available():
        if device == "auto":
            log_fallback(f"ONNX Runtime has no {CUDA} ({installed()})")
            return Placement(options=own)
        raise InputError(_no_provider(CUDA))
    return Placement(CUDA, {"device_id": str(index), **own}, "cuda", index)


def _named(name: str, own: Mapping[str, str]) -> Placement:
    provider = PROVIDERS.get(name.lower(), name)
    if provider not in available():
        raise InputError(_no_provider(provider))
    if provider == CUDA:
        index = int(own.get("device_id", "0"))
        return Placement(CUDA, own, "cuda", index)
    return Placement(provider, own)  # keys and values in the memory of the process: every provider can read it


def available() -> list[str]:
    """Execution providers of the installed ONNX Runtime."""
    import onnxruntime

    names: list[str] = onnxruntime.get_available_providers()
    return names


def check_placed(session: Any, placement: Placement) -> None:
    """BackendError where ONNX Runtime could not start the provider, and would run everything on the CPU instead."""
    if placement.provider not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime cannot start {placement.provider}: its libraries (for CUDA: CUDA and cuDNN of the version "
            f"that the wheel was built for) do not load; {installed()}; choose device 'cpu', or mend the installation"
        )


def wheels() -> dict[str, str]:
    """Installed distributions that provide the module `onnxruntime`, with their versions."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "onnxruntime" or name.startswith("onnxruntime-"):
            found[name] = distribution.version
    return {name: version for name, version in sorted(found.items()) if not _is_addition(name)}


def installed() -> str:
    """What is installed, for messages: `installed: onnxruntime 1.32.0`, and what is wrong with it."""
    found = wheels()
    listed = " and ".join(f"{name} {version}" for name, version in found.items()) or "no wheel that pip knows"
    if len(found) < 2:
        return f"installed: {listed}"
    return (
        f"installed: {listed}, which overwrite each other's files; keep one: "
        f"pip uninstall -y {' '.join(found)} && pip install onnxruntime-gpu (or onnxruntime for CPUs)"
    )


def _is_addition(name: str) -> bool:
    """Whether a distribution adds to `onnxruntime` and does not replace it."""
    return name.removeprefix("onnxruntime-") in ("extensions", "genai", "genai-cuda", "genai-directml", "tools")


def _no_provider(provider: str) -> str:
    remedy = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu" if provider == CUDA else "install its wheel"
    return (
        f"ONNX Runtime has no {provider}; it has {', '.join(available())} ({installed()}); {remedy}, or choose device "
        "'cpu'"
    )


def _provider_options(options: EngineOptions) -> dict[str, Any]:
    return {name: value for name, value in options.options.items() if name.startswith(PROVIDER_OPTION)}
