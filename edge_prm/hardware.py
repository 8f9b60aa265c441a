"""The hardware of this device: facts that the system reports, never guesses. What it does not report is None.

Each function reads one fact; its arguments are where it looks, so that a test can give another place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CPU = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")
MODEL = Path("/proc/device-tree/model")  # of a Jetson or a Raspberry Pi
PRODUCT = Path("/sys/devices/virtual/dmi/id/product_name")
_MEMORY_INFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")  # of a container, version 2: the limit and the use of its memory
_INSTRUCTIONS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX-INT8",
    "asimddp": "NEON dotprod", "i8mm": "NEON i8mm",
}  # fmt: skip
"""Flag of /proc/cpuinfo -> name of the instructions by which int8 kernels are chosen. Without a row for int8 products
(VNNI, dotprod), 8-bit kernels saturate or are slow."""


@dataclass(frozen=True)
class Processor:
    """Its name, the instructions that matter to int8 kernels, logical cores, and the frequency governor of Linux."""

    name: str
    instructions: tuple[str, ...]
    cores: int
    governor: str | None


@dataclass(frozen=True)
class Memory:
    """Memory of the system in GB (10^9 bytes); `available_gb` is what a program can take now, in its container."""

    total_gb: float | None
    available_gb: float | None


@dataclass(frozen=True)
class Gpu:
    """A GPU of NVIDIA. Memory in GB (10^9 bytes), None where it is the system's, as on a Jetson. `capability`: the
    compute capability, such as 8.6, and `driver` the version, None where the system does not tell."""

    name: str
    total_gb: float | None = None
    free_gb: float | None = None
    capability: str | None = None
    driver: str | None = None


def machine(model: Path = MODEL, product: Path = PRODUCT) -> str:
    """The model of a board or computer, else its architecture; never the host's name, which is private."""
    return text_of(model) or text_of(product) or platform.machine()


def processor(cpu_info: Path = CPU_INFO) -> Processor:
    """The processor of this device."""
    return processor_of(text_of(cpu_info) or "")


def processor_of(cpu_info: str) -> Processor:
    """The processor that the text of /proc/cpuinfo describes; the platform's own name where it does not."""
    lines = [line.split(":", 1) for line in cpu_info.splitlines() if ":" in line]
    fields = {key.strip(): value.strip() for key, value in reversed(lines)}  # of the first core
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Processor(
        name=fields.get("model name") or _mac_processor() or platform.processor() or platform.machine(),
        instructions=tuple(name for flag, name in _INSTRUCTIONS.items() if flag in flags),
        cores=os.cpu_count() or 1,
        governor=text_of(_CPU / "cpu0/cpufreq/scaling_governor"),
    )


def total_memory_gb() -> float | None:
    """Memory of the system in GB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def memory(info: Path = _MEMORY_INFO, group: Path = _GROUP) -> Memory:
    """Memory of the system, and what is available within the limit of this container."""
    lines = [line.split() for line in (text_of(info) or "").splitlines()]
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    limit, used = (_number(text_of(group / name)) for name in ("memory.max", "memory.current"))
    free = [kilobytes["MemAvailable"] * 1024] if "MemAvailable" in kilobytes else []
    if limit is not None and used is not None:
        free.append(max(0, limit - used))
    total = round(kilobytes["MemTotal"] * 1024 / 1e9, 1) if "MemTotal" in kilobytes else total_memory_gb()
    return Memory(total, round(min(free) / 1e9, 1) if free else None)


def gpus(nvml: Any = None, model: Path = MODEL) -> tuple[Gpu, ...]:
    """GPUs that NVIDIA's management library (NVML) names; the one of a Jetson, by the model of its board, without it.

    `nvml`: the library, by default the one of the driver. No other maker's GPUs are found.
    """
    library = nvml or _nvml()
    found = tuple(_gpus_of(library)) if library is not None else ()
    board = text_of(model) or ""
    if not found and "Jetson" in board:
        return (Gpu(f"GPU of {board}"),)
    return found


def power_mode() -> str | None:
    """A Jetson's power mode, as `nvpmodel -q` names it."""
    answer = output_of(["nvpmodel", "-q"])
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


def output_of(command: list[str]) -> str | None:
    """What a program prints; None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def text_of(path: Path) -> str | None:
    """The text of a file of the system; None where it is not there, cannot be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _mac_processor() -> str | None:
    return output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) if platform.system() == "Darwin" else None


class _NvmlMemory(ctypes.Structure):
    """nvmlMemory_t of nvml.h, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _nvml() -> Any:
    """NVIDIA's management library, which comes with the driver; None where there is no driver."""
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def _gpus_of(nvml: Any) -> Iterator[Gpu]:
    """The GPUs of NVML, https://docs.nvidia.com/deploy/nvml-api: each function returns 0 where it has an answer."""
    if nvml.nvmlInit_v2() != 0:
        return
    try:
        driver, count = ctypes.create_string_buffer(96), ctypes.c_uint()
        has_driver = nvml.nvmlSystemGetDriverVersion(driver, len(driver)) == 0
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
                yield _gpu_of(nvml, handle, driver.value.decode() if has_driver else None)
    finally:
        nvml.nvmlShutdown()


def _gpu_of(nvml: Any, handle: Any, driver: str | None) -> Gpu:
    name, held = ctypes.create_string_buffer(96), _NvmlMemory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    named = nvml.nvmlDeviceGetName(handle, name, len(name)) == 0
    has_memory = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(held)) == 0
    capable = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
    return Gpu(
        name.value.decode("utf-8", errors="replace") if named else "GPU of NVIDIA",
        round(held.total / 1e9, 1) if has_memory else None,
        round(held.free / 1e9, 1) if has_memory else None,
        f"{major.value}.{minor.value}" if capable else None,
        driver,
    )
