"""Cells of tables: how values are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_prm_bench.speed.latency import Spread, Timing
from edge_prm_bench.statistics.metrics import Estimate

UNKNOWN = "not available"
LONGEST_CELL = 160


@dataclass(frozen=True)
class Table:
    """`note` says how to read it."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def size(gigabytes: float) -> str:
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{gigabytes * 1000:.1f} MB"


def number(value: float | None, form: str = ".4f") -> str:
    """A value as a table shows it: NaN and None are no numbers, and what is not zero is not shown as zero."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1e}" if form == ".4f" and 0 < abs(value) < 5e-5 else format(value, form)


def estimate(value: Estimate, form: str = ".4f") -> str:
    """A value with its 95% interval."""
    if math.isnan(value.value) or math.isnan(value.low):
        return number(value.value, form)
    return f"{number(value.value, form)} [{number(value.low, form)}, {number(value.high, form)}]"


def times(timing: Timing | Spread | None, form: str = ".2f") -> str:
    """Median and range of seconds: `1.20 [1.10, 1.45]`."""
    if timing is None:
        return UNKNOWN
    low, high = (timing.low, timing.high) if isinstance(timing, Spread) else (timing.best, timing.worst)
    return f"{number(timing.p50, form)} [{number(low, form)}, {number(high, form)}]"


def short(text: str) -> str:
    """One line of a table; text of the data is printed without control characters."""
    from edge_prm.printable import printable

    shown = printable(text)
    return shown if len(shown) <= LONGEST_CELL else shown[: LONGEST_CELL - 1] + "…"
