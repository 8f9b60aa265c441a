"""What is measured in a process of its own: the load time of a bundle, and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_prm.errors import BackendError
from edge_prm_bench.engine import Engine
from edge_prm_bench.speed.latency import Timing, timing

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Load:
    """Seconds from the start of the import to a bundle ready to score, in several processes.

    `warm` with the bundle's files in the page cache, `cold` without; `cold` is None where the cache cannot be dropped.
    """

    warm: Timing
    cold: Timing | None


@dataclass(frozen=True)
class Memory:
    """GB (10^9 bytes): `peak_gb` of the process in main memory, None where the system does not report it (Windows);
    `device_gb` of a GPU, None on a CPU and where nothing reports it."""

    peak_gb: float | None
    device_gb: float | None = None


def measure_load(bundle: Path, engine: Engine, runs: int) -> Load:
    """Load a bundle in `runs` new processes, and in as many with a cold page cache; BackendError when one fails."""
    cold: list[float] = []
    while len(cold) < runs and _drop_page_cache(bundle):
        cold.append(_run(bundle, engine, 0)["load_s"])
    warm = [_run(bundle, engine, 0)["load_s"] for _ in range(runs)]
    return Load(timing(warm), timing(cold) if cold else None)


def measure_peak_memory(bundle: Path, tokens: int, engine: Engine, device: str = "cpu") -> Memory:
    """The memory of a process that loads the bundle and scores one text of `tokens` tokens on `device`.

    `device` is where the engine runs, as `engine.device_of` names it. BackendError when the process fails.
    """
    facts = _run(bundle, engine, tokens, device)
    return Memory(facts["peak_gb"], facts.get("device_gb"))


def _run(bundle: Path, engine: Engine, tokens: int, device: str = "cpu") -> dict[str, Any]:
    arguments = [str(bundle), str(tokens), device, json.dumps(engine.keywords()), json.dumps(sys.path)]
    command = [sys.executable, str(_CHILD), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        what = f"scores {tokens} tokens with" if tokens else "loads"
        raise BackendError(f"a process that {what} {bundle} failed ({done.returncode}): {last}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _drop_page_cache(bundle: Path) -> bool:
    """Ask the system to drop the files' pages from its cache; needs no privilege for pages that are written out."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in bundle.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
