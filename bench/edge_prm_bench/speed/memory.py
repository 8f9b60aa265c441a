"""Memory of a GPU that a process takes: what is in use now, less what was in use before.

The card counts all its processes together, so a figure holds while no other process uses the card. It includes what
CUDA itself takes for a process, a few hundred MB. Engines keep what they once allocated, so what is in use after a run
is its peak.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edge_prm_bench.speed.nvml import card_of

MEMORY_INFO = Path("/proc/meminfo")
BOARD_MODEL = Path("/proc/device-tree/model")

Reader = Callable[[], "int | None"]
"""Bytes in use, None where they are not known."""


def reader_of(device: str, board: Path = BOARD_MODEL, info: Path = MEMORY_INFO) -> Reader | None:
    """What reads the memory of a GPU that is in use; None for a CPU, and where nothing reports it.

    The GPU of a Jetson shares the memory of the board, which the system reports.
    """
    if device == "cpu":
        return None
    card = card_of(device)
    if card is not None and card.used_bytes() is not None:
        return card.used_bytes
    if device.startswith("cuda") and "jetson" in _text(board).lower():
        return lambda: system_bytes(_text(info))
    return None


def system_bytes(info: str) -> int | None:
    """Memory in use by the text of /proc/meminfo, in bytes: without caches that the system frees when asked."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", info, re.MULTILINE))
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    return (int(sizes["MemTotal"]) - int(sizes["MemAvailable"])) * 1024


def added_gb(reader: Reader | None, before: int | None) -> float | None:
    """GB (10^9 bytes) in use beyond `before` bytes; None where either is not known."""
    now = None if reader is None else reader()
    return None if now is None or before is None else max(0, now - before) / 1e9


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
