"""The options with which bundles are loaded, and the device on which they run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import edge_prm
from edge_prm.backends import EngineOptions
from edge_prm.cores import usable_cores
from edge_prm.manifest import Manifest


@dataclass(frozen=True)
class Engine:
    """Options of `edge_prm.load`: threads (None: one per core), device, number of layers on a GPU, and an execution
    provider of ONNX Runtime in place of the device."""

    threads: int | None = None
    device: str = "auto"
    gpu_layers: int | None = None
    provider: str | None = None

    def load(self, folder: Path) -> edge_prm.PRM:
        """Load a bundle; raises as `edge_prm.load` does."""
        return edge_prm.load(folder, **self.keywords())

    def keywords(self) -> dict[str, Any]:
        """The options as keywords of `edge_prm.load`."""
        given = {"threads": self.threads, "device": self.device, "gpu_layers": self.gpu_layers}
        return given if self.provider is None else {**given, "provider": self.provider}

    def options(self) -> EngineOptions:
        """The options as the runtime has them."""
        return EngineOptions(self.threads, self.device, self.gpu_layers, provider=self.provider)

    def for_reference(self, manifest: Manifest) -> Engine:
        """The options for a reference bundle: the CPU where its engine has no GPU, whatever the device option says."""
        on_gpu = {"gpu", "cuda"} & {*manifest.recipe.devices}
        return self if on_gpu else replace(self, device="auto", gpu_layers=None, provider=None)


def device_of(prm: edge_prm.PRM) -> str:
    """The device of a loaded bundle: `cpu`, `cuda:0`, `gpu` (all cards of llama.cpp), or a provider's name."""
    return prm.device


def default_threads() -> int:
    """Threads of an engine without the option: one per core that this process may use."""
    return usable_cores()
