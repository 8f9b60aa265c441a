"""The environment of the processes of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def child_environment(
    jobs: int, given: Mapping[str, str] = os.environ, places: Sequence[str] | None = None
) -> dict[str, str]:
    """`given` with this program's modules, with the CUDA libraries that pip installed, and with a share of the cores
    for each of several `jobs`. `places`: where Python finds modules, sys.path by default.

    The loader of Linux does not look into site-packages, where torch has CUDA and cuDNN, and ONNX Runtime needs them.
    """
    places = [place for place in (sys.path if places is None else places) if place]
    libraries = [str(folder) for place in places for folder in sorted(Path(place).glob("nvidia/*/lib"))]
    searched = [*filter(None, given.get("LD_LIBRARY_PATH", "").split(os.pathsep)), *libraries]
    environment = {**given, "PYTHONPATH": os.pathsep.join(places)}
    if searched:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(searched)
    if jobs > 1:
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    return environment
