"""What this device can run: facts about its hardware and the installed engines, read by one function each.

An engine that is not installed is a fact, and so is one that does not work; no function here raises for either. What
follows from the facts is in `edge_prm.doctor_choices`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import edge_prm
from edge_prm import hardware
from edge_prm.backends.onnx import wheels
from edge_prm.backends.onnx.cache import try_device
from edge_prm.backends.onnx.providers import CUDA, Placement
from edge_prm.backends.onnx.saturation import saturates
from edge_prm.cores import usable_cores
from edge_prm.errors import BackendError

WORKS = "works"
"""What `OnnxRuntime.cuda` is where CUDA could be used."""


@dataclass(frozen=True)
class System:
    """The computer and the programs of everything else. `usable_cores`: what this process may use."""

    edge_prm: str
    python: str
    platform: str
    machine: str
    usable_cores: int


@dataclass(frozen=True)
class OnnxRuntime:
    """The engine of ONNX bundles.

    `version` is None where it is not installed or cannot be imported; `error` is then why it cannot. `wheels` are the
    distributions that provide it, by name, and `conflict` says what is wrong where they are several. `cuda` is None
    without CUDA's provider, WORKS where a small computation on the first card came out, else the reason why not.
    `saturates`: whether 8-bit kernels of the CPU do, None where that cannot be tried.
    """

    version: str | None
    error: str | None = None
    wheels: Mapping[str, str] | None = None
    conflict: str | None = None
    providers: tuple[str, ...] = ()
    cuda: str | None = None
    saturates: bool | None = None


@dataclass(frozen=True)
class LlamaCpp:
    """The engine of GGUF bundles, llama-cpp-python: `version` and `error` as of OnnxRuntime; `gpu`: whether this build
    uses a GPU."""

    version: str | None
    error: str | None = None
    gpu: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All facts."""

    system: System
    processor: hardware.Processor
    memory: hardware.Memory
    gpus: tuple[hardware.Gpu, ...]
    onnxruntime: OnnxRuntime
    llama_cpp: LlamaCpp

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Read all facts. Takes seconds: engines are imported, and a GPU computes a small tensor."""
    return Diagnosis(
        system=system(),
        processor=hardware.processor(),
        memory=hardware.memory(),
        gpus=hardware.gpus(),
        onnxruntime=onnxruntime(),
        llama_cpp=llama_cpp(),
    )


def system() -> System:
    """Versions, and the computer."""
    return System(
        edge_prm=edge_prm.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        machine=hardware.machine(),
        usable_cores=usable_cores(),
    )


def onnxruntime(
    load: Callable[[str], ModuleType] = import_module, try_cuda: Callable[[Placement], None] = try_device
) -> OnnxRuntime:
    """ONNX Runtime, as it is installed. `load` imports a module; `try_cuda` raises BackendError where CUDA fails."""
    module, error = _imported("onnxruntime", load)
    found = {"wheels": wheels.wheels(), "conflict": wheels.conflict()}
    if module is None:
        return OnnxRuntime(None, error, **found)  # type: ignore[arg-type]
    providers = tuple(module.get_available_providers())
    cuda = _cuda(try_cuda) if CUDA in providers else None
    return OnnxRuntime(str(module.__version__), None, providers=providers, cuda=cuda, saturates=saturates(), **found)  # type: ignore[arg-type]


def llama_cpp(load: Callable[[str], ModuleType] = import_module) -> LlamaCpp:
    """llama-cpp-python, as it is installed. `load` imports a module."""
    module, error = _imported("llama_cpp", load)
    if module is None:
        return LlamaCpp(None, error)
    return LlamaCpp(str(module.__version__), None, bool(module.llama_supports_gpu_offload()))


def _imported(name: str, load: Callable[[str], ModuleType]) -> tuple[ModuleType | None, str | None]:
    """A module, or None with the reason why it cannot be imported; without a reason where it is not installed."""
    try:
        return load(name), None
    except ModuleNotFoundError as error:
        return None, None if error.name == name else str(error)
    except Exception as error:  # a library of the module's that does not load: OSError, RuntimeError, ImportError
        return None, " ".join(str(error).split()) or type(error).__name__


def _cuda(try_cuda: Callable[[Placement], None]) -> str:
    try:
        try_cuda(Placement(CUDA, {"device_id": "0"}, "cuda", 0))
    except BackendError as error:
        return str(error)
    return WORKS
