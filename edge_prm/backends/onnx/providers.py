"""Which execution provider of ONNX Runtime runs a bundle, and on which device. What is missing is an error."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_prm.backends.guest import log_fallback
from edge_prm.backends.onnx.wheels import PROVIDER_WHEELS, conflict, installed, replaced_by
from edge_prm.backends.options import PROVIDER_OPTION, EngineOptions, device_of
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, InputError
from edge_prm.notices import SlowDeviceWarning

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
_OF_CUDA = (CUDA, PROVIDERS["tensorrt"])
_DEVICE_ID = "device_id"
_log = logging.getLogger("edge_prm")


@dataclass(frozen=True)
class Placement:
    """Where a session runs. `memory`: ONNX Runtime's name of the device that holds keys and values, `index` its number;
    `options`: those of the provider, by their own names."""

    provider: str = CPU
    options: Mapping[str, str] = field(default_factory=dict)
    memory: str = "cpu"
    index: int = 0

    @property
    def providers(self) -> list[Any]:
        """The argument of InferenceSession: the CPU takes the nodes that the provider does not."""
        chosen = (self.provider, dict(self.options))
        return [chosen] if self.provider == CPU else [chosen, CPU]

    @property
    def in_memory(self) -> Placement:
        """The placement of a graph that works on keys and values where they are, without copies to another device."""
        return self if self.memory != "cpu" else Placement()

    @property
    def device(self) -> str:
        """The device in a word: `cpu`, `cuda:0`, or the provider where it is neither."""
        if self.provider == CPU:
            return "cpu"
        return f"cuda:{self.index}" if self.memory == "cuda" else self.provider


def place(options: EngineOptions, bundle: Bundle) -> Placement:
    """The placement that options ask for.

    InputError for a provider that the installed ONNX Runtime does not have, and for options of a provider where the CPU
    runs the bundle, which has none. `auto` takes CUDA where the recipe is for it and it is there, and tells why it does
    not: in the log, and with a SlowDeviceWarning where the recipe is for a GPU.
    """
    own = _provider_options(options)
    if options.provider is not None:
        return _named(options.provider, own)
    device, index = device_of(options.device)
    if device == "auto":
        device = _automatic(bundle)
    if device == "cpu":
        return _on_cpu(own)
    if CUDA not in available():
        raise InputError(_no_provider(CUDA))
    return _on_cuda(own, index)


def place_on(device: str) -> Placement:
    """The placement of `cpu`, `cuda` or `cuda:1` for a graph that is no bundle's; raises as `place` does."""
    kind, index = device_of(device)
    if kind == "cpu":
        return Placement()
    if CUDA not in available():
        raise InputError(_no_provider(CUDA))
    return _on_cuda({}, index)


def available() -> list[str]:
    """Execution providers of the installed ONNX Runtime."""
    import onnxruntime

    names: list[str] = onnxruntime.get_available_providers()
    return names


def new_session(graph: str | bytes, session_options: Any, placement: Placement) -> Any:
    """An onnxruntime.InferenceSession of a file or a serialized graph; raises what ONNX Runtime raises.

    By itself, ONNX Runtime prints a provider's failure on stdout and takes the CPU. Not all versions have an option
    against that; all have the attribute behind it.
    """
    import onnxruntime

    if placement.provider in _OF_CUDA:
        _load_cuda_libraries()
    never = property(lambda self: False, lambda self, value: None)
    kind: Any = type("InferenceSession", (onnxruntime.InferenceSession,), {"_enable_fallback": never})
    return kind(graph, session_options, providers=placement.providers)


@functools.cache
def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from the packages of PyPI, where they are installed: by itself ONNX Runtime looks for the
    system's only. Once is enough. What it prints about libraries that it does not find goes to stderr; stdout is for
    rewards."""
    import onnxruntime

    preload = getattr(onnxruntime, "preload_dlls", None)  # onnxruntime >= 1.21
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):
            preload()


def check_placed(session: Any, placement: Placement) -> None:
    """BackendError where everything would run on the CPU though another provider was asked for.

    ONNX Runtime leaves out a provider that it cannot start, and gives the CPU all nodes that a provider does not take.
    """
    provider = placement.provider
    if provider not in session.get_providers():
        libraries = " (CUDA and cuDNN, of the versions that the wheel was built for)" if provider == CUDA else ""
        raise BackendError(
            f"ONNX Runtime cannot start {provider}: the libraries that it needs{libraries} do not load, or there is no "
            f"such device; {installed()}; repair the installation, or choose device 'cpu'"
        )
    nodes = _nodes_of_providers(session) if provider != CPU else Counter()
    if not nodes:
        return
    if provider not in nodes:
        raise BackendError(
            f"{provider} takes none of the graph's {nodes.total()} nodes, so everything would run on the CPU; choose "
            "device 'cpu', or another provider"
        )
    _log.info("%s runs %d of %d nodes, the CPU the others", provider, nodes[provider], nodes.total())


def record_assignment(session_options: Any) -> None:
    """Make ONNX Runtime remember which provider has which nodes; a version that does not know this ignores it."""
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


def _nodes_of_providers(session: Any) -> Counter[str]:
    """Provider -> number of its nodes; empty where this version of ONNX Runtime does not tell, or was not asked to."""
    nodes: Counter[str] = Counter()
    if hasattr(session, "get_provider_graph_assignment_info"):
        with contextlib.suppress(Exception):  # its own class, where nothing was recorded
            for part in session.get_provider_graph_assignment_info():
                nodes[part.ep_name] += len(part.get_nodes())
    return nodes


def _automatic(bundle: Bundle) -> str:
    """`cuda` or `cpu`: what device `auto` is for a bundle here."""
    recipe = bundle.manifest.recipe
    if "cuda" not in recipe.devices:
        log_fallback("the bundle's recipe is for CPUs")
        return "cpu"
    if CUDA in available():
        return "cuda"
    reason = f"ONNX Runtime has no {CUDA}; {installed()}"
    log_fallback(reason)
    warnings.warn(
        f"{bundle.folder}: recipe {recipe.label} is for GPUs, and it is slow on the CPU, where device 'auto' runs it "
        f"({reason}); for CPUs export the checkpoint with --int8 or --int4, or choose device 'cpu' to hide this",
        SlowDeviceWarning,
        stacklevel=2,
    )
    return "cpu"


def _named(name: str, own: Mapping[str, str]) -> Placement:
    """The placement of a provider by its name."""
    names = available()
    known = {provider.lower(): provider for provider in names}
    provider = PROVIDERS.get(name.lower(), known.get(name.lower(), name))
    if provider not in names:
        raise InputError(_no_provider(provider))
    if provider == CPU:
        return _on_cpu(own)
    if provider == CUDA:
        return _on_cuda(own, None)
    return Placement(provider, own)  # keys and values in the memory of the process: every provider can read it


def _on_cpu(own: Mapping[str, str]) -> Placement:
    if own:
        raise InputError(
            f"{PROVIDER_OPTION}{next(iter(own))} is an option of an execution provider, and the CPU, which runs this "
            "bundle, has none; leave it out, or name the provider"
        )
    return Placement()


def _on_cuda(own: Mapping[str, str], index: int | None) -> Placement:
    """CUDA on a card: `index`, or the provider's own option `device_id`."""
    given = own.get(_DEVICE_ID, str(index or 0))
    if not given.isdecimal():
        raise InputError(f"{PROVIDER_OPTION}{_DEVICE_ID} is {given!r}; give the number of a card, from 0 up")
    if index not in (None, int(given)):
        raise InputError(f"device is 'cuda:{index}' and {PROVIDER_OPTION}{_DEVICE_ID} is {given}; choose one of them")
    return Placement(CUDA, {**own, _DEVICE_ID: given}, "cuda", int(given))


def _no_provider(provider: str) -> str:
    wheel = PROVIDER_WHEELS.get(provider)
    remedy = f"for it: {replaced_by(wheel)}" if wheel else "install a wheel that has it"
    said = [f"ONNX Runtime has no {provider}; it has {', '.join(available())}", installed()]
    return "; ".join([*said, *([] if conflict() else [remedy]), "or choose device 'cpu'"])


def _provider_options(options: EngineOptions) -> dict[str, str]:
    start = len(PROVIDER_OPTION)
    return {name[start:]: str(value) for name, value in options.options.items() if name.startswith(PROVIDER_OPTION)}
