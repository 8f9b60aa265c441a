"""Facts about the hardware, each read from a place that a test makes."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest

from edge_prm import hardware
from edge_prm.hardware import Gpu, Memory

JETSON = "NVIDIA Jetson Orin Nano Developer Kit\0"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_machine_is_the_board_else_the_product_else_the_architecture(tmp_path: Path) -> None:
    nowhere, product = tmp_path / "nowhere", write(tmp_path / "product", "ThinkPad\n")
    assert hardware.machine(write(tmp_path / "model", JETSON), product) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert hardware.machine(nowhere, product) == "ThinkPad"
    assert hardware.machine(nowhere, nowhere) == platform.machine()


def test_the_processor_is_read_from_the_system_s_file(tmp_path: Path) -> None:
    cpu_info = write(tmp_path / "cpuinfo", "model name: Some CPU\nflags: avx2 avx512_vnni\n")
    found = hardware.processor(cpu_info)
    assert (found.name, found.instructions) == ("Some CPU", ("AVX2", "AVX512-VNNI"))


INFO = "MemTotal:        8000000 kB\nMemFree:  100000 kB\nMemAvailable:    6000000 kB\nHugePages_Total:  0\n"


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [(None, None, 6.1), ("max", "5", 6.1), ("3000000000", "1000000000", 2.0), ("9", "20", 0.0)],
)
def test_available_memory_is_what_the_system_and_the_container_leave(
    tmp_path: Path, limit: str | None, used: str | None, available: float
) -> None:
    for name, text in (("memory.max", limit), ("memory.current", used)):
        if text is not None:
            write(tmp_path / name, text)
    found = hardware.memory(write(tmp_path / "meminfo", INFO), tmp_path)
    assert found == Memory(8.2, available)


def test_memory_of_a_system_without_such_files_is_not_guessed(tmp_path: Path) -> None:
    found = hardware.memory(tmp_path / "nowhere", tmp_path)
    assert found == Memory(hardware.total_memory_gb(), None)


class Nvml:
    """NVIDIA's management library for two cards; `fails` are names of functions that have no answer."""

    CARDS = (("NVIDIA GeForce RTX 3060", 12_000_000_000, 11_000_000_000, 8, 6), ("NVIDIA H100", 80_000_000_000, 79_000_000_000, 9, 0))  # fmt: skip

    def __init__(self, *fails: str) -> None:
        self._fails = fails
        self.is_open = False

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "_fails"):
            return lambda *_: 3  # NVML_ERROR_NOT_SUPPORTED
        return object.__getattribute__(self, name)

    def nvmlInit_v2(self) -> int:
        self.is_open = True
        return 0

    def nvmlShutdown(self) -> int:
        self.is_open = False
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        assert size == len(text)
        text.value = b"580.1"
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.CARDS)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = 1 + index.value
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, text: Any, size: int) -> int:
        text.value = self.CARDS[handle.value - 1][0].encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        _, memory._obj.total, memory._obj.free, *_ = self.CARDS[handle.value - 1]
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: ctypes.c_void_p, major: Any, minor: Any) -> int:
        *_, major._obj.value, minor._obj.value = self.CARDS[handle.value - 1]
        return 0


def test_gpus_are_those_of_the_driver_s_library(tmp_path: Path) -> None:
    nvml = Nvml()
    assert hardware.gpus(nvml, tmp_path / "nowhere") == (
        Gpu("NVIDIA GeForce RTX 3060", 12.0, 11.0, "8.6", "580.1"),
        Gpu("NVIDIA H100", 80.0, 79.0, "9.0", "580.1"),
    )
    assert not nvml.is_open


def test_what_the_driver_does_not_tell_is_none(tmp_path: Path) -> None:
    """As on a Jetson, whose GPU has the system's memory."""
    nvml = Nvml(
        "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability", "nvmlSystemGetDriverVersion", "nvmlDeviceGetName"
    )  # fmt: skip
    assert hardware.gpus(nvml, tmp_path / "nowhere") == (Gpu("GPU of NVIDIA"), Gpu("GPU of NVIDIA"))


def test_the_gpu_of_a_jetson_is_known_by_the_board(tmp_path: Path) -> None:
    model = write(tmp_path / "model", JETSON)
    name = "GPU of NVIDIA Jetson Orin Nano Developer Kit"
    assert hardware.gpus(Nvml("nvmlInit_v2"), model) == (Gpu(name),)


def test_a_device_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_nvml", lambda: None)
    assert hardware.gpus(None, write(tmp_path / "model", "Raspberry Pi 5 Model B")) == ()


def test_a_program_that_is_not_there_or_fails_has_no_output() -> None:
    assert hardware.output_of(["no-such-program-anywhere"]) is None
    assert hardware.output_of(["false"]) is None
