"""Figures of a child process: one JSON line each on stdout, as soon as it is measured, so that a crash costs one."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def report_figures(figures: Mapping[str, Callable[[], Any]], wanted: Sequence[str]) -> None:
    """Measure each wanted figure and print its line: `{"figure", "seconds", "value"}`, or `failed` with the reason."""
    for name, measure in figures.items():
        if name not in wanted:
            continue
        start = time.perf_counter()
        try:
            outcome = {"value": plain(measure())}
        except Exception as error:  # of an engine, of torch, of a driver: it costs this figure, and no other
            outcome = {"failed": reason(error)}
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"figure": name, "seconds": seconds, **outcome}, allow_nan=False), flush=True)


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def plain(value: Any) -> Any:
    """Dataclasses as JSON objects, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
