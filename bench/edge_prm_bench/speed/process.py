"""What is measured in a process of its own: the load time of a bundle, and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
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


def measure_load(bundle: Path, engine: Engine, runs: int) -> Load:
    """Load a bundle in `runs` new processes, and in as many with a cold page cache; BackendError when one fails."""
    cold: list[float] = []
    while len(cold) < runs and _drop_page_cache(bundle):
        cold.append(_run(bundle, engine, 0)["load_s"])
    warm = [_run(bundle, engine, 0)["load_s"] for _ in range(runs)]
    return Load(timing(warm), timing(cold) if cold else None)


def measure_peak_memory(bundle: Path, tokens: int, engine: Engine) -> float | None:
    """Peak resident memory, in GB, of a process that loads the bundle and scores one text of `tokens` tokens.

    None where the system does not report it (Windows). BackendError when the process fails.
    """
    peak = _run(bundle, engine, tokens)["peak_gb"]
    return None if peak is None else float(peak)


def _run(bundle: Path, engine: Engine, tokens: int) -> dict[str, Any]:
    arguments = [str(bundle), str(tokens), json.dumps(asdict(engine)), json.dumps(sys.path)]
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
