"""Figures of other engines, measured elsewhere and shown with ours: one JSON object a line.

    {"peer": "llama.cpp Q8_0", "prefill": {"512": 74.1, "2048": 66.0}, "size_gb": 1.9, "peak_gb": 2.3,
     "mean": 0.0033, "p99": 0.012, "spearman": 0.996}

Only `peer`, the name, is required. `prefill` is tokens/s by length in tokens; the lengths may also be keys of the
object itself: `{"peer": "...", "512": 74.1}`. Sizes are in GB (10^9 bytes). `mean` and `p99` are absolute differences
of reward from full precision, on the data on which the bundles are measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_prm.errors import InputError

_NUMBERS = ("size_gb", "peak_gb", "mean", "p99", "spearman")


@dataclass(frozen=True)
class Baseline:
    """Figures of another engine, None where its line has none; units as in the module's docstring."""

    name: str
    prefill: dict[int, float]
    size_gb: float | None = None
    peak_gb: float | None = None
    mean: float | None = None
    p99: float | None = None
    spearman: float | None = None


def read_baselines(paths: Sequence[Path]) -> tuple[Baseline, ...]:
    """Read files of baselines; InputError names a line that is not a baseline, and an engine that has two lines."""
    baselines = [baseline for path in paths for baseline in _read(path)]
    names = [baseline.name for baseline in baselines]
    for baseline in baselines:
        if names.count(baseline.name) > 1:
            raise InputError(f"two lines hold figures of the peer {baseline.name!r}; put all its figures into one line")
    return tuple(baselines)


def _read(path: Path) -> list[Baseline]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    baselines = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            baselines.append(_parsed(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number} does not hold the figures of a peer ({error}); "
                'they look like {"peer": "llama.cpp Q8_0", "prefill": {"512": 74.1}}'
            ) from None
    if not baselines:
        raise InputError(f"{path} holds no figures of a peer")
    return baselines


def _parsed(row: Any) -> Baseline:
    name = row["peer"]
    if not isinstance(name, str):
        raise ValueError("peer is not a string")
    speeds = {**{key: value for key, value in row.items() if key.isdigit()}, **row.get("prefill", {})}
    numbers = {key: float(row[key]) for key in _NUMBERS if row.get(key) is not None}
    prefill = {int(length): float(speed) for length, speed in speeds.items()}
    if not all(math.isfinite(value) for value in (*prefill.values(), *numbers.values())):
        raise ValueError("a figure is not finite")
    return Baseline(name, prefill, **numbers)
