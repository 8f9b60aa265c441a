"""The device: what it reports is read as it is meant, and what it does not report is no figure."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_nvml import FakeCard, FakeNvml, nowhere

from edge_prm.errors import BackendError
from edge_prm_bench.engine import Engine
from edge_prm_bench.report import tables
from edge_prm_bench.results import Environment, Results
from edge_prm_bench.speed import child, process
from edge_prm_bench.speed.device import Device, Processor, installed_versions, processor_of
from edge_prm_bench.speed.energy import EnergyMeter, input_milliwatts
from edge_prm_bench.speed.nvml import CardFacts, find_card


def write_package(folder: Path, name: str, energy: int, limit: int = 10_000_000) -> Path:
    package = folder / name
    package.mkdir(parents=True, exist_ok=True)
    (package / "energy_uj").write_text(f"{energy}\n")
    (package / "max_energy_range_uj").write_text(f"{limit}\n")
    return package


def test_rapl_counts_packages_and_not_their_parts(tmp_path: Path) -> None:
    package = write_package(tmp_path, "intel-rapl:0", 1_000_000)
    part = write_package(tmp_path, "intel-rapl:0:0", 0)
    other = write_package(tmp_path, "intel-rapl:1", 9_500_000)
    with EnergyMeter(tmp_path, "no-such-program") as meter:
        (package / "energy_uj").write_text("3500000")
        (part / "energy_uj").write_text("9000000")
        (other / "energy_uj").write_text("500000")  # its counter wrapped
    assert meter.energy is not None
    assert meter.energy.joules == pytest.approx(2.5 + 1.0)
    assert meter.energy.source.startswith("RAPL")
    assert meter.energy.watts == pytest.approx(meter.energy.joules / meter.energy.seconds)


def test_a_device_that_measures_no_energy_has_none_and_not_zero(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path / "nowhere", "no-such-program") as meter:
        pass
    assert meter.energy is None
    write_package(tmp_path, "intel-rapl:0", 5)
    with EnergyMeter(tmp_path, "no-such-program") as meter:
        pass
    assert meter.energy is None  # the counter did not change


def test_the_counter_of_a_card_is_its_energy(tmp_path: Path) -> None:
    driver = FakeNvml(FakeCard(energy=1_000))
    with EnergyMeter(None, "no-such-program", find_card(driver, "cuda:0", nowhere)) as meter:
        driver.cards[0].energy = 4_500
    assert meter.energy is not None
    assert meter.energy.joules == pytest.approx(3.5)
    assert meter.energy.source.startswith("NVML")


def test_a_card_that_counts_no_energy_has_none(tmp_path: Path) -> None:
    write_package(tmp_path, "intel-rapl:0", 5)
    meter = EnergyMeter(None, "no-such-program", find_card(FakeNvml(FakeCard(energy=None)), "cuda:0", nowhere))
    assert not meter.available
    with meter:
        pass
    assert meter.energy is None


def test_a_counter_that_may_not_be_read_is_no_energy(tmp_path: Path) -> None:
    package = write_package(tmp_path, "intel-rapl:0", 5)
    with EnergyMeter(tmp_path, "no-such-program") as meter:
        (package / "energy_uj").unlink()
    assert meter.energy is None


ORIN_NANO = (
    "11-25-2026 09:40:12 RAM 3011/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [6%@729,2%@729,off,off,0%@729,"
    "1%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] NVJPG off cpu@48.5C soc2@47.3C gpu@48.7C tj@48.7C VDD_IN 4879mW/4901mW "
    "VDD_CPU_GPU_CV 560mW/571mW VDD_SOC 1480mW/1482mW\n"
)
AGX_ORIN = (
    "11-25-2026 09:40:12 RAM 5120/62797MB (lfb 1x4MB) CPU [1%@1113,0%@1113] GR3D_FREQ 0%@[0,0] cpu@45.9C tj@45.9C "
    "VDD_GPU_SOC 2403mW/2403mW VDD_CPU_CV 1202mW/1135mW VIN_SYS_5V0 3638mW/3638mW NC 0mW/0mW VDDQ_VDD2_1V8AO "
    "303mW/303mW NC 0mW/0mW\n"
)
THOR = "RAM 6000/125772MB cpu@40.1C VDD_GPU 3000mW/3000mW VIN_SYS_5V0 5000mW/5000mW VIN 31250mW/31000mW\n"


@pytest.mark.parametrize(
    ("line", "milliwatts"),
    [
        ("RAM 4072/7620MB CPU [3%@1510] VDD_IN 5368mW/5012mW VDD_CPU_GPU_CV 1234mW/1200mW", 5368),
        ("RAM 1/2MB POM_5V_IN 2532/2500 POM_5V_GPU 0/0", 2532),
        (ORIN_NANO, 4879),
        (AGX_ORIN, 2403 + 1202 + 3638),
        (THOR, 31250),
        ("VIN_SYS_5V0 3400mW/3300mW", None),  # the system's part of an AGX Orin
        ("RAM 1/2MB CPU [off]", None),
        ("", None),
    ],
)
def test_the_input_rail_of_tegrastats_is_read(line: str, milliwatts: int | None) -> None:
    assert input_milliwatts(line) == milliwatts


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for tegrastats is a script")
def test_the_board_power_of_a_jetson_is_preferred_to_that_of_the_processor(tmp_path: Path) -> None:
    write_package(tmp_path, "intel-rapl:0", 5)
    program = tmp_path / "tegrastats"
    program.write_text(
        f"#!{sys.executable}\nimport time\nwhile True:\n"
        "    print('RAM 1/2MB VDD_IN 6000mW/5000mW', flush=True)\n    time.sleep(0.02)\n"
    )
    program.chmod(0o755)
    with EnergyMeter(tmp_path, str(program)) as meter:
        time.sleep(0.6)
    assert meter.energy is not None
    assert meter.energy.watts == pytest.approx(6.0)
    assert meter.energy.source.startswith("tegrastats")


def test_a_bundle_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is not an edge-prm bundle"):
        process.measure_peak_memory(tmp_path, 16, Engine(1))


def test_peak_memory_is_the_high_water_mark_of_the_process(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n")
    assert child.peak_bytes(status) == 2048 * 1024


def test_without_proc_and_the_module_resource_peak_memory_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert child.peak_bytes(tmp_path / "nowhere") is None


EPYC = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni
processor\t: 1
model name\t: another core
flags\t\t: fpu
"""
ORIN = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd42\n"


@pytest.mark.parametrize(
    ("cpu_info", "name", "instructions"),
    [
        (EPYC, "AMD EPYC", ("AVX2", "AVX-512", "AVX512-VNNI")),
        (ORIN, None, ("NEON dotprod",)),
        ("", None, ()),
    ],
)
def test_a_processor_is_described_by_what_int8_kernels_need(
    cpu_info: str, name: str | None, instructions: tuple[str, ...]
) -> None:
    processor = processor_of(cpu_info)
    assert processor.instructions == instructions
    assert processor.name == name or name is None


def test_the_hardware_line_has_processor_threads_and_versions() -> None:
    device = Device(
        "board", Processor("Cortex", ("NEON dotprod",), 6, None), 8.0, "Linux 5.15 aarch64", "15W",
        {"python": "3.11", "onnxruntime": "1.22", "llama-cpp-python": "0.3.36", "numpy": "2.0"},
    )  # fmt: skip
    assert tables.hardware(Results(Environment(device, 1))) == (
        "Cortex (NEON dotprod), 6 cores, 8 GB, power mode 15W; Linux 5.15 aarch64; 1 thread; "
        "python 3.11, onnxruntime 1.22, llama-cpp-python 0.3.36, numpy 2.0"
    )


def test_the_hardware_line_names_the_card_and_its_driver() -> None:
    device = Device("board", Processor("Cortex", (), 6, None), 8.0, "Linux", None, {"python": "3.12"})
    cards = {"cuda:1": CardFacts("NVIDIA Fake 1", 24.0, "600.1", "13.1")}
    assert "8 GB, cuda:1: NVIDIA Fake 1, 24 GB, driver 600.1;" in tables.hardware(
        Results(Environment(device, 1, cards=cards))
    )


def test_versions_are_of_installed_packages_only() -> None:
    versions = installed_versions(("numpy", "no-such-package"))
    assert versions == {"python": platform.python_version(), "numpy": np.__version__}
