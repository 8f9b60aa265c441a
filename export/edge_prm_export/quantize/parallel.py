"""Work on stripes of a matrix, one thread per core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_parallel(work: Callable[[int], T], items: Iterable[int]) -> list[T]:
    """Run `work` on each item, one thread per core and one BLAS thread each: these matrices are too small to share."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))
