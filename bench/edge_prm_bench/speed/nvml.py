"""NVIDIA cards as their driver reports them through NVML: name, memory in use, energy. Needs nvidia-ml-py.

What the driver does not report is None: a Jetson answers for its integrated GPU, but knows neither memory nor energy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_prm.hardware import gpus


@dataclass(frozen=True)
class CardFacts:
    """A card: its name, memory in GB (10^9 bytes), the version of the driver, and the newest CUDA that it runs."""

    name: str
    memory_gb: float | None
    driver: str | None
    cuda: str | None


class Card:
    """One card. `nvml` is the module pynvml, initialized; `handle` is its name of the card."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def facts(self) -> CardFacts:
        """What stays the same during a run."""
        memory = self._memory()
        cuda = self._asked("nvmlSystemGetCudaDriverVersion")
        return CardFacts(
            name=_text(self._asked("nvmlDeviceGetName", self._handle)) or "unknown card",
            memory_gb=None if memory is None else round(memory.total / 1e9, 1),
            driver=_text(self._asked("nvmlSystemGetDriverVersion")),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        )

    def used_bytes(self) -> int | None:
        """Memory of the card that all processes use together, in bytes."""
        memory = self._memory()
        return None if memory is None else int(memory.used)

    def millijoules(self) -> int | None:
        """Energy since the driver was loaded, in mJ; None before Volta and on a Jetson."""
        counted = self._asked("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return int(counted) if counted else None

    def _memory(self) -> Any:
        memory = self._asked("nvmlDeviceGetMemoryInfo", self._handle)
        return memory if memory is not None and memory.total else None  # some Jetsons answer with zeros

    def _asked(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


def facts_of(device: str) -> CardFacts | None:
    """The facts of a device's card. Without nvidia-ml-py those that the runtime knows, of a machine with one card."""
    card = card_of(device)
    if card is not None:
        return card.facts()
    known = gpus() if device == "gpu" or device.startswith("cuda") else ()
    return CardFacts(known[0].name, known[0].total_gb, known[0].driver, None) if len(known) == 1 else None


def card_of(device: str) -> Card | None:
    """The card of a device: of `cuda:1` the one that CUDA counts as 1; of `gpu` the only one.

    None for a CPU, without nvidia-ml-py or a driver of NVIDIA, and where it is not known which card it is.
    """
    if device != "gpu" and not device.startswith("cuda"):
        return None
    nvml = _initialized()
    return None if nvml is None else find_card(nvml, device, bus_id_of)


def find_card(nvml: Any, device: str, bus_id: Callable[[int], str | None]) -> Card | None:
    """The card of a device among those of an initialized `nvml`; `bus_id`: number in CUDA -> PCI bus id.

    CUDA and NVML count cards differently: CUDA by speed, and only those of CUDA_VISIBLE_DEVICES.
    """
    try:
        if nvml.nvmlDeviceGetCount() == 1:
            return Card(nvml, nvml.nvmlDeviceGetHandleByIndex(0))
        if device == "gpu":
            return None
        found = bus_id(int(device.partition(":")[2] or 0))
        return None if found is None else Card(nvml, nvml.nvmlDeviceGetHandleByPciBusId(found.encode()))
    except nvml.NVMLError:
        return None


def bus_id_of(index: int) -> str | None:
    """The PCI bus id of the card that CUDA counts as `index`, by CUDA's driver; None without that driver."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetPCIBusId(name, len(name), device)
    )
    return None if failed else name.value.decode()


def _initialized() -> Any:
    """The module pynvml, None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _text(value: Any) -> str | None:
    """Older versions of pynvml give bytes."""
    return value.decode() if isinstance(value, bytes) else value
