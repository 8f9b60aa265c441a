"""With what options bundles are loaded, and what they then run on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import edge_prm
from edge_prm.cores import usable_cores
from edge_prm.manifest import Manifest


@dataclass(frozen=True)
class Engine:
    """Options of `edge_prm.load`: threads (None: one per core), device and the layers that a GPU holds."""

    threads: int | None = None
    device: str = "auto"
    gpu_layers: int | None = None

    def load(self, folder: Path) -> edge_prm.PRM:
        """Load a bundle; raises as `edge_prm.load` does."""
        return edge_prm.load(folder, threads=self.threads, device=self.device, gpu_layers=self.gpu_layers)

    def for_reference(self, manifest: Manifest) -> Engine:
        """The same for a reference bundle: where its engine has no GPU, it runs on the CPU without being asked."""
        return self if manifest.backend == "gguf" else replace(self, device="auto", gpu_layers=None)


def device_of(prm: edge_prm.PRM) -> str:
    """What a loaded bundle runs on: `cpu` or `gpu`."""
    return "gpu" if getattr(prm.model, "on_gpu", False) else "cpu"


def default_threads() -> int:
    """Threads of an engine that is given none: one per core that this process may use."""
    return usable_cores()
