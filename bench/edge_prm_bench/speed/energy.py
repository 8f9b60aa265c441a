"""Energy of a piece of work, where the device measures it: a Jetson's input rail, or the processor's counter (RAPL).

None elsewhere: neither an estimate from a data sheet nor a zero is a measurement.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

RAPL = Path("/sys/class/powercap")
INTERVAL_MS = 200
_RAIL = re.compile(r"\b(VDD_IN|POM_5V_IN|VIN_SYS_5V0)\s+(\d+)(?:mW)?/")


@dataclass(frozen=True)
class Energy:
    """Energy in joules over a time in seconds, and what measured it."""

    joules: float
    seconds: float
    source: str

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


class EnergyMeter:
    """`with EnergyMeter() as meter: work()`; then `meter.energy`, None when this device measures none.

    `rapl`: the folder of the RAPL counters; `tegrastats`: the program that reports a Jetson's power.
    """

    def __init__(self, rapl: Path = RAPL, tegrastats: str = "tegrastats") -> None:
        self.energy: Energy | None = None
        self._packages = _packages(rapl)
        self._tegrastats = shutil.which(tegrastats)
        self._milliwatts: list[int] = []

    @property
    def available(self) -> bool:
        """Whether this device measures energy."""
        return bool(self._packages or self._tegrastats)

    def __enter__(self) -> EnergyMeter:
        self._started = time.perf_counter()
        self._before = [_counter(package / "energy_uj") for package in self._packages]
        if self._tegrastats:
            self._process = subprocess.Popen(
                [self._tegrastats, "--interval", str(INTERVAL_MS)], stdout=subprocess.PIPE, text=True
            )
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._started
        if self._tegrastats:
            self._process.terminate()
            self._process.wait()
            self._reader.join(timeout=2)
            if self._milliwatts:
                watts = sum(self._milliwatts) / len(self._milliwatts) / 1000
                self.energy = Energy(watts * seconds, seconds, "tegrastats, board input")
                return
        joules = self._rapl_joules()
        if joules is not None:
            self.energy = Energy(joules, seconds, "RAPL, processor packages")

    def _rapl_joules(self) -> float | None:
        total = 0
        for package, before in zip(self._packages, self._before, strict=True):
            after, limit = _counter(package / "energy_uj"), _counter(package / "max_energy_range_uj")
            if before is None or after is None:
                return None
            total += after - before if after >= before else after - before + (limit or 0)  # the counter wraps
        return total / 1e6 if total > 0 else None

    def _read(self) -> None:
        assert self._process.stdout is not None, "it was opened with a pipe"
        for line in self._process.stdout:
            milliwatts = input_milliwatts(line)
            if milliwatts is not None:
                self._milliwatts.append(milliwatts)


def input_milliwatts(line: str) -> int | None:
    """The board's input power, mW, in a line of tegrastats: `VDD_IN 5368mW/5012mW` is current and mean power."""
    rails = dict(_RAIL.findall(line))
    return next((int(rails[name]) for name in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0") if name in rails), None)


def _packages(rapl: Path) -> list[Path]:
    """The counters of processor packages; those of their parts (`rapl:0:0`) would be counted twice."""
    if not rapl.is_dir():
        return []
    packages = [path for path in sorted(rapl.glob("*rapl:[0-9]*")) if path.name.count(":") == 1]
    return [path for path in packages if _counter(path / "energy_uj") is not None]


def _counter(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
