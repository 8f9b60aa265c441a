"""Energy and loading: what a device tells is read right, and what it does not tell is not made up."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edge_prm.errors import BackendError
from edge_prm_bench.engine import Engine
from edge_prm_bench.speed import process
from edge_prm_bench.speed.energy import EnergyMeter, input_milliwatts


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
        (other / "energy_uj").write_text("500000")  # its counter went over the end
    assert meter.energy is not None
    assert meter.energy.joules == pytest.approx(2.5 + 1.0)
    assert meter.energy.source.startswith("RAPL")
    assert meter.energy.watts == pytest.approx(meter.energy.joules / meter.energy.seconds)


def test_a_device_that_tells_nothing_has_no_energy_and_never_zero(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path / "nowhere", "no-such-program") as meter:
        pass
    assert meter.energy is None
    write_package(tmp_path, "intel-rapl:0", 5)
    with EnergyMeter(tmp_path, "no-such-program") as meter:
        pass
    assert meter.energy is None  # the counter stood still


def test_a_counter_that_may_not_be_read_is_no_energy(tmp_path: Path) -> None:
    package = write_package(tmp_path, "intel-rapl:0", 5)
    with EnergyMeter(tmp_path, "no-such-program") as meter:
        (package / "energy_uj").unlink()
    assert meter.energy is None


@pytest.mark.parametrize(
    ("line", "milliwatts"),
    [
        ("RAM 4072/7620MB CPU [3%@1510] VDD_IN 5368mW/5012mW VDD_CPU_GPU_CV 1234mW/1200mW", 5368),
        ("RAM 1/2MB POM_5V_IN 2532/2500 POM_5V_GPU 0/0", 2532),
        ("VIN_SYS_5V0 3400mW/3300mW", 3400),
        ("RAM 1/2MB CPU [off]", None),
        ("", None),
    ],
)
def test_the_input_rail_of_tegrastats_is_read(line: str, milliwatts: int | None) -> None:
    assert input_milliwatts(line) == milliwatts


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for tegrastats is a script")
def test_a_jetson_s_board_power_goes_before_the_processor_s(tmp_path: Path) -> None:
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


def test_memory_that_a_system_does_not_know_is_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_run", lambda *_: {"load_s": 1.0, "peak_gb": None})
    assert process.measure_peak_memory(tmp_path, 16, Engine(1)) is None


def test_the_process_needs_no_module_of_unix_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Windows: no /proc and no module `resource`."""
    hidden = "import sys, pathlib; sys.modules['resource'] = None; pathlib.Path.exists = lambda self: False\n"
    fake = "import sys, types; sys.modules['edge_prm'] = types.SimpleNamespace(load=lambda *_, **__: None)\n"
    monkeypatch.setattr(process, "_CODE", hidden + fake + process._CODE)
    assert process.measure_peak_memory(tmp_path, 0, Engine(1)) is None
