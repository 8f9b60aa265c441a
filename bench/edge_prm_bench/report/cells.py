"""Cells of tables: how values are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_prm.printable import printable
from edge_prm_bench.speed.latency import Spread, Timing
from edge_prm_bench.statistics.metrics import Estimate

NONE = "–"
UNKNOWN = "not available"
LONGEST_CELL = 160
SMALLEST_PLAIN = 5e-5  # smaller values would be shown as 0.0000


@dataclass(frozen=True)
class Table:
    """A table of text; `note` says how to read it."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def size(gigabytes: float) -> str:
    """A size in GB, or in MB where it is small."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{gigabytes * 1000:.1f} MB"


def number(value: float | None, digits: str = ".4f") -> str:
    """A value by a format specification: NaN and None are a dash, and a value that is not zero is not shown as zero."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:.1e}" if digits == ".4f" and 0 < abs(value) < SMALLEST_PLAIN else format(value, digits)


def estimate(value: Estimate, digits: str = ".4f") -> str:
    """A value with its 95% interval: `0.0120 [0.0100, 0.0140]`."""
    if math.isnan(value.value) or math.isnan(value.low):
        return number(value.value, digits)
    return f"{number(value.value, digits)} [{number(value.low, digits)}, {number(value.high, digits)}]"


def times(timing: Timing | Spread | None, digits: str = ".2f") -> str:
    """Median and range: `1.20 [1.10, 1.45]`."""
    if timing is None:
        return UNKNOWN
    low, high = (timing.low, timing.high) if isinstance(timing, Spread) else (timing.best, timing.worst)
    return f"{number(timing.p50, digits)} [{number(low, digits)}, {number(high, digits)}]"


def plural(count: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def short(text: str) -> str:
    """Text of the data as one line of a table: without control characters, and cut at LONGEST_CELL characters."""
    shown = printable(text)
    return shown if len(shown) <= LONGEST_CELL else shown[: LONGEST_CELL - 1] + "…"
