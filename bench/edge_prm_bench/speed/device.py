"""The device of a run, and whether it kept its speed: facts that the system reports, never guesses.

What a system does not report is None, and shown as "not available".
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from edge_prm.hardware import Processor as Processor
from edge_prm.hardware import installed_versions as installed_versions
from edge_prm.hardware import machine, power_mode, processor, text_of, total_memory_gb
from edge_prm.hardware import processor_of as processor_of

_CPU = Path("/sys/devices/system/cpu")
PACKAGES = ("edge-prm", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "numpy", "tokenizers")
_SLOWER = 0.9  # share of the first speed; with less at the end, the device was throttled or busy


@dataclass(frozen=True)
class Device:
    """The machine of a run. `memory_gb`: 10^9 bytes; `power_mode`: of a Jetson; `versions` of packages by name."""

    machine: str
    processor: Processor
    memory_gb: float | None
    system: str
    power_mode: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Throttling:
    """Speed of the same int8 GEMM before and after a run, in 10^9 operations/s, and the throttling events that the
    processor counted in between; None where it does not count."""

    gops_before: float
    gops_after: float
    thermal_events: int | None

    @property
    def slowed(self) -> bool:
        """Whether the device was throttled or busy: slower by a tenth, or with a thermal event."""
        return self.gops_after < _SLOWER * self.gops_before or bool(self.thermal_events)

    @property
    def sentence(self) -> str:
        """The same in one sentence."""
        change = f"{self.gops_before:.0f} int8 GOPS before the run, {self.gops_after:.0f} after it"
        if not self.slowed:
            return f"The device kept its speed ({change})."
        events = f", {self.thermal_events} thermal events" if self.thermal_events else ""
        return f"The device slowed down during the run ({change}{events}): it was throttled or busy; measure again."


def describe_device() -> Device:
    """Read what the system reports; what it does not report is None."""
    return Device(
        machine=machine(),
        processor=processor(),
        memory_gb=total_memory_gb(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        power_mode=power_mode(),
        versions=installed_versions(PACKAGES),
    )


def thermal_events() -> int | None:
    """Throttling events of all cores since the system started, as Linux counts them on x86; None elsewhere."""
    counts = [text_of(path) for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    numbers = [int(count) for count in counts if count is not None and count.isdigit()]
    return sum(numbers) if numbers else None
