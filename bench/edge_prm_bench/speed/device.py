"""What a run was measured on, and whether the device held its speed: facts read from the system, never guessed.

What a system does not tell is None, and shown as "not available".
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_MODEL = Path("/proc/device-tree/model")  # a Jetson or a Raspberry Pi says here what it is
_PRODUCT = Path("/sys/devices/virtual/dmi/id/product_name")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")  # what int8 kernels are chosen by
_SLOWER = 0.9  # of the speed at the start, at the end: less means that the device throttled, or was busy


@dataclass(frozen=True)
class Device:
    """The hardware card of a report."""

    machine: str
    processor: str
    instructions: str
    cores: int
    memory_gb: float | None
    system: str
    governor: str | None
    power_mode: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Throttling:
    """Speed of the same multiplication before and after a run, and how often the processor says it was throttled."""

    gops_before: float
    gops_after: float
    thermal_events: int | None

    @property
    def slowed(self) -> bool:
        return self.gops_after < _SLOWER * self.gops_before or bool(self.thermal_events)

    @property
    def sentence(self) -> str:
        change = f"{self.gops_before:.0f} int8 GOPS before the run, {self.gops_after:.0f} after it"
        if not self.slowed:
            return f"The device held its speed ({change})."
        events = f", {self.thermal_events} thermal events" if self.thermal_events else ""
        return f"The device slowed down during the run ({change}{events}): it was throttled or busy; measure again."


def describe_device() -> Device:
    model, flags = _processor()
    return Device(
        machine=_text(_MODEL) or _text(_PRODUCT) or platform.machine(),  # the host's name is nobody's business
        processor=model,
        instructions=", ".join(name for name in _INSTRUCTIONS if name in flags),
        cores=os.cpu_count() or 1,
        memory_gb=_memory_gb(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        governor=_text(_CPU / "cpu0/cpufreq/scaling_governor"),
        power_mode=_power_mode(),
        versions=installed_versions(
            ("edge-prm", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "numpy", "tokenizers")
        ),
    )


def thermal_events() -> int | None:
    """Throttling events of all cores since the system started, as Linux counts them on x86; None elsewhere."""
    counts = [_text(path) for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    numbers = [int(count) for count in counts if count is not None and count.isdigit()]
    return sum(numbers) if numbers else None


def _processor() -> tuple[str, set[str]]:
    info = _text(Path("/proc/cpuinfo")) or ""
    fields = dict(line.split(":", 1) for line in reversed(info.splitlines()) if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    model = named.get("model name") or _mac_processor() or platform.processor() or platform.machine()
    return model, set((named.get("flags") or named.get("Features") or "").split())


def _mac_processor() -> str | None:
    return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) if platform.system() == "Darwin" else None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _power_mode() -> str | None:
    """A Jetson's power mode, as `nvpmodel -q` names it."""
    answer = _output(["nvpmodel", "-q"])
    if answer is None:
        return None
    return next((line.split(":", 1)[1].strip() for line in answer.splitlines() if "Power Mode" in line), None)


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _output(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
