"""A process that measures one bundle on one device: `python -m edge_prm_bench.gpu_day.measure SPEC FIGURE...`.

SPEC is a JSON object: `bundle`, `device`, `threads`, `lengths`, `runs`, `memory_tokens`. Each FIGURE is printed as a
line (see speed.report_line) when it is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import edge_prm
from edge_prm.bundle import open_bundle
from edge_prm.check import check_bundle
from edge_prm_bench.engine import Engine, device_of
from edge_prm_bench.speed import latency, process
from edge_prm_bench.speed.energy import Energy
from edge_prm_bench.speed.measure import FIXED_TOKENS, energy_of
from edge_prm_bench.speed.profile import memcpy_nodes
from edge_prm_bench.speed.report_line import report_figures

PREFILL = "prefill "
FIXED = ("check", "push", "rank", "memory", "memcpy", "energy")
"""Figures besides the prefill of each length."""
COMPARED = ("check", "memory")
"""The same of a bundle that runs on a CPU for comparison: pushes and ranking take minutes there."""


def figures_of(lengths: Sequence[int], fixed: Sequence[str] = FIXED) -> tuple[str, ...]:
    """Names of the figures of a bundle."""
    return (*(f"{PREFILL}{length}" for length in lengths), *fixed)


class Subject:
    """A bundle on a device. It is loaded at the first figure that needs it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._folder = Path(spec["bundle"])
        self._engine = Engine(spec["threads"], spec["device"])

    @cached_property
    def prm(self) -> edge_prm.PRM:
        """The loaded bundle."""
        return self._engine.load(self._folder)

    def figures(self) -> dict[str, Callable[[], Any]]:
        """Name -> what measures it, in the order of their worth."""
        runs = self._spec["runs"]
        prefill = {f"{PREFILL}{length}": self._prefill(length) for length in self._spec["lengths"]}
        return {
            "check": self._check,
            **prefill,
            "push": lambda: latency.measure_pushes(self.prm),
            "rank": lambda: latency.measure_rank(self.prm, runs),
            "memory": self._memory,
            "memcpy": lambda: memcpy_nodes(self._folder, self._spec["device"]),
            "energy": self._energy,
        }

    def _prefill(self, length: int) -> Callable[[], latency.Prefill]:
        return lambda: latency.measure_prefill(self.prm, length, self._spec["runs"])

    def _check(self) -> dict[str, object]:
        return check_bundle(open_bundle(self._folder), self._engine.options()).as_dict()

    def _memory(self) -> dict[str, Any]:
        """Of a process of its own, that loads the bundle and scores one text."""
        tokens = self._spec["memory_tokens"]
        taken = process.measure_peak_memory(self._folder, tokens, self._engine, device_of(self.prm))
        return {"tokens": tokens, "host_gb": taken.peak_gb, "device_gb": taken.device_gb}

    def _energy(self) -> dict[str, Any] | None:
        nearest = min(self._spec["lengths"], key=lambda length: abs(length - FIXED_TOKENS))
        energy: Energy | None = energy_of(self.prm, latency.measure_prefill(self.prm, nearest, runs=2))
        if energy is None:
            return None
        return {"tokens": nearest, "joules": energy.joules, "watts": energy.watts, "source": energy.source}


def main(spec: str, wanted: Sequence[str]) -> None:
    """Measure the wanted figures."""
    report_figures(Subject(json.loads(spec)).figures(), wanted)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
