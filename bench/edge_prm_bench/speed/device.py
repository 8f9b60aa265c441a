"""The device of a run, and whether it kept its speed: facts that the system reports, never guesses.

What a system does not report is None, and shown as "not available".
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_CPU_INFO = Path("/proc/cpuinfo")
_MODEL = Path("/proc/device-tree/model")  # of a Jetson or a Raspberry Pi
_PRODUCT = Path("/sys/devices/virtual/dmi/id/product_name")
_INSTRUCTIONS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX-INT8",
    "asimddp": "NEON dotprod", "i8mm": "NEON i8mm",
}  # fmt: skip
"""Flag of /proc/cpuinfo -> name of the instructions by which int8 kernels are chosen. Without a row for int8 products
(VNNI, dotprod), 8-bit kernels saturate or are slow."""
PACKAGES = ("edge-prm", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "numpy", "tokenizers")
_SLOWER = 0.9  # share of the first speed; with less at the end, the device was throttled or busy


@dataclass(frozen=True)
class Processor:
    """Its name, the instructions that matter to int8 kernels, logical cores, and the frequency governor of Linux."""

    name: str
    instructions: tuple[str, ...]
    cores: int
    governor: str | None


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
        machine=_text(_MODEL) or _text(_PRODUCT) or platform.machine(),  # never the host's name, which is private
        processor=processor_of(_text(_CPU_INFO) or ""),
        memory_gb=_memory_gb(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        power_mode=_power_mode(),
        versions=installed_versions(PACKAGES),
    )


def processor_of(cpu_info: str) -> Processor:
    """The processor that the text of /proc/cpuinfo describes; the platform's own name where it does not."""
    lines = [line.split(":", 1) for line in cpu_info.splitlines() if ":" in line]
    fields = {key.strip(): value.strip() for key, value in reversed(lines)}  # of the first core
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Processor(
        name=fields.get("model name") or _mac_processor() or platform.processor() or platform.machine(),
        instructions=tuple(name for flag, name in _INSTRUCTIONS.items() if flag in flags),
        cores=os.cpu_count() or 1,
        governor=_text(_CPU / "cpu0/cpufreq/scaling_governor"),
    )


def thermal_events() -> int | None:
    """Throttling events of all cores since the system started, as Linux counts them on x86; None elsewhere."""
    counts = [_text(path) for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    numbers = [int(count) for count in counts if count is not None and count.isdigit()]
    return sum(numbers) if numbers else None


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
    """Versions of Python and of those packages that are installed, by name."""
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


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
