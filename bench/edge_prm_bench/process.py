"""What only a process of its own can tell: how long a bundle takes to load, and how much memory it needs at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_prm.errors import BackendError

# Linux hands ru_maxrss of the parent down to a new process; VmHWM starts anew with it.
_CODE = """
import json, pathlib, sys, time
start = time.perf_counter()
import edge_prm
prm = edge_prm.load({bundle!r}, threads={threads})
loaded = time.perf_counter() - start
if {tokens}:
    import numpy as np
    vocabulary = prm.manifest.architecture.vocabulary
    ids = np.random.default_rng(0).integers(0, min(vocabulary, 150_000), {tokens})
    prm.model.start().extend(ids, [{tokens} - 1])
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
high = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
if not high:
    import resource
    high = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)]
print(json.dumps({{"load_s": loaded, "peak_gb": high[0] / 1e9}}))
"""


@dataclass(frozen=True)
class Load:
    """Seconds from the start of the import to a bundle ready to score; `cold` is None where the page cache of the
    bundle's files cannot be dropped."""

    warm: float
    cold: float | None


def measure_load(bundle: Path, threads: int | None) -> Load:
    """Load a bundle in new processes, with its files in the page cache and without."""
    cold = _run(bundle, threads, 0)["load_s"] if _drop_page_cache(bundle) else None
    warm = min(_run(bundle, threads, 0)["load_s"] for _ in range(2))
    return Load(warm, cold)


def measure_peak_memory(bundle: Path, tokens: int, threads: int | None) -> float:
    """Peak resident memory, in GB, of a process that loads the bundle and scores one text of `tokens` tokens."""
    return float(_run(bundle, threads, tokens)["peak_gb"])


def _run(bundle: Path, threads: int | None, tokens: int) -> dict[str, Any]:
    code = _CODE.format(bundle=str(bundle), threads=threads, tokens=tokens)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"a process that scores {tokens} tokens with {bundle} failed ({done.returncode}): {last}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _drop_page_cache(bundle: Path) -> bool:
    """Ask the system to forget the files' pages; no privilege is needed for pages that are written out."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in bundle.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
