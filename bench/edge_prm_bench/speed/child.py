"""A process that loads a bundle, scores one text, and prints its load time and its peak memory as JSON.

Run by its path, with bundle, tokens of the text (0: only load), the device whose memory is measured (`cpu`: none),
options of `edge_prm.load` and sys.path, the last two as JSON: the edge-prm that measures is the one that is measured.
Until the clock starts, only the standard library is imported, unless a GPU's memory is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def peak_bytes(status: Path = STATUS) -> int | None:
    """Peak resident memory of this process in bytes, None where the system does not report it (Windows).

    A new process on Linux inherits ru_maxrss from its parent, and VmHWM starts at zero.
    """
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def measure(bundle: str, tokens: int, device: str, options: dict[str, Any]) -> dict[str, float | None]:
    """Load, score `tokens` random tokens unless it is 0, and return `load_s` (import included) and `peak_gb`.

    With a GPU also `device_gb`, what loading and scoring added to its memory; None where that is not known.
    """
    added_gb = None if device == "cpu" else _device_memory(device)
    start = time.perf_counter()
    import edge_prm

    prm = edge_prm.load(bundle, **options)
    load_s = time.perf_counter() - start
    if tokens:
        import numpy as np

        vocabulary = prm.manifest.architecture.vocabulary
        ids = np.random.default_rng(0).integers(0, min(vocabulary, 150_000), tokens)
        prm.model.start().extend(ids, [tokens - 1])
    peak = peak_bytes()
    facts = {"load_s": load_s, "peak_gb": None if peak is None else peak / 1e9}
    return facts if added_gb is None else {**facts, "device_gb": added_gb()}


def _device_memory(device: str) -> Callable[[], float | None]:
    """A function that returns the GB that were added to the memory of a GPU since this call."""
    from edge_prm_bench.speed import memory

    reader = memory.reader_of(device)
    before = None if reader is None else reader()
    return lambda: memory.added_gb(reader, before)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[5])
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))))
