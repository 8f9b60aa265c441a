"""Energy of a piece of work, where the device measures it: a Jetson's input rail, a card's counter (NVML), or the
processor's (RAPL).

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

from edge_prm_bench.speed.nvml import Card, card_of

RAPL = Path("/sys/class/powercap")
INTERVAL_MS = 200
_RAIL = re.compile(r"\b(\w+) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)")
_TOTALS = (("VDD_IN",), ("VIN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""Rails that together are the power of the board: of Orin NX, Orin Nano and Xavier NX, of Thor, of Nano and TX, and of
AGX Orin, which has no rail of the total."""


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

    `rapl`: the folder of the RAPL counters, None for work on a GPU; `tegrastats`: the program that reports a Jetson's
    power; `card`: the card that does the work.
    """

    def __init__(self, rapl: Path | None = RAPL, tegrastats: str = "tegrastats", card: Card | None = None) -> None:
        self.energy: Energy | None = None
        self._packages = _packages(rapl)
        self._tegrastats = shutil.which(tegrastats)
        self._card = card if card is not None and card.millijoules() is not None else None
        self._milliwatts: list[int] = []

    @property
    def available(self) -> bool:
        """Whether this device measures energy."""
        return bool(self._packages or self._tegrastats or self._card)

    def __enter__(self) -> EnergyMeter:
        self._started = time.perf_counter()
        self._before = [_counter(package / "energy_uj") for package in self._packages]
        self._card_before = self._card.millijoules() if self._card else None
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
        joules, source = self._board_joules(seconds), "tegrastats, board input"
        if joules is None:
            joules, source = self._card_joules(), "NVML, the card alone"
        if joules is None:
            joules, source = self._rapl_joules(), "RAPL, processor packages"
        if joules is not None:
            self.energy = Energy(joules, seconds, source)

    def _board_joules(self, seconds: float) -> float | None:
        """Mean power of the board times the time; ends tegrastats."""
        if not self._tegrastats:
            return None
        self._process.terminate()
        self._process.wait()
        self._reader.join(timeout=2)
        if not self._milliwatts:
            return None
        return sum(self._milliwatts) / len(self._milliwatts) / 1000 * seconds

    def _card_joules(self) -> float | None:
        after = self._card.millijoules() if self._card else None
        if after is None or self._card_before is None or after <= self._card_before:
            return None
        return (after - self._card_before) / 1000

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


def meter_for(device: str) -> EnergyMeter:
    """A meter of the work of a device: on a GPU, the counters of the processor would miss it."""
    return EnergyMeter() if device == "cpu" else EnergyMeter(rapl=None, card=card_of(device))


def input_milliwatts(line: str) -> int | None:
    """The board's power, mW, in a line of tegrastats: `VDD_IN 5368mW/5012mW` is current and mean power.

    None for a line without the rails of a known board: a single one of them is less than the board.
    """
    rails = {name: int(power) for name, power in _RAIL.findall(line.strip())}
    complete = (names for names in _TOTALS if rails.keys() >= {*names})
    return next((sum(rails[name] for name in names) for names in complete), None)


def _packages(rapl: Path | None) -> list[Path]:
    """The counters of processor packages; those of their parts (`rapl:0:0`) would be counted twice."""
    if rapl is None or not rapl.is_dir():
        return []
    packages = [path for path in sorted(rapl.glob("*rapl:[0-9]*")) if path.name.count(":") == 1]
    return [path for path in packages if _counter(path / "energy_uj") is not None]


def _counter(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
