"""A stand-in for pynvml: cards whose memory and energy a test sets, and which may not know them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass
class FakeCard:
    """A card; None is what its driver does not report."""

    name: str = "NVIDIA Fake 1"
    bus_id: str = "00000000:01:00.0"
    used: int | None = 1_000_000_000
    total: int = 8_000_000_000
    energy: int | None = 1


class FakeNvml:
    """The functions of pynvml that are used, by their own names."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, *cards: FakeCard, driver: str = "600.1") -> None:
        self.cards = cards
        self._driver = driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:
        return self.cards[index]

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: bytes) -> FakeCard:
        found = [card for card in self.cards if card.bus_id == bus_id.decode()]
        if not found:
            raise self.NVMLError
        return found[0]

    def nvmlDeviceGetName(self, card: FakeCard) -> bytes:
        return card.name.encode()  # as old versions do

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13010

    def nvmlDeviceGetMemoryInfo(self, card: FakeCard) -> Any:
        if card.used is None:
            raise self.NVMLError
        return SimpleNamespace(used=card.used, total=card.total)

    def nvmlDeviceGetTotalEnergyConsumption(self, card: FakeCard) -> int:
        if card.energy is None:
            raise self.NVMLError
        return card.energy


def nowhere(index: int) -> str | None:
    """CUDA's driver is not there."""
    return None
