"""The options with which bundles are loaded, and the device on which they run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import edge_prm
from edge_prm.cores import usable_cores
from edge_prm.manifest import Manifest


@dataclass(frozen=True)
class Engine:
    """Options of `edge_prm.load`: threads (None: one per core), device, and the number of layers on a GPU."""

    threads: int | None = None
    device: str = "auto"
    gpu_layers: int | None = None

    def load(self, folder: Path) -> edge_prm.PRM:
        """Load a bundle; raises as `edge_prm.load` does."""
        return edge_prm.load(folder, threads=self.threads, device=self.device, gpu_layers=self.gpu_layers)

    def for_reference(self, manifest: Manifest) -> Engine:
        """The options for a reference bundle: the CPU where its engine has no GPU, whatever the device option says."""
        return self if "gpu" in manifest.recipe.devices else replace(self, device="auto", gpu_layers=None)


def device_of(prm: edge_prm.PRM) -> str:
    """The device of a loaded bundle: `cpu` or `gpu`."""
    return "gpu" if getattr(prm.model, "on_gpu", False) else "cpu"


def default_threads() -> int:
    """Threads of an engine without the option: one per core that this process may use."""
    return usable_cores()
