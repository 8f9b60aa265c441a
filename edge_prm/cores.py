"""How many cores this process may use: the default number of threads of every engine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CPUS = Path("/sys/devices/system/cpu")


def usable_cores(proc: Path = _PROC, cpus: Path = _CPUS) -> int:
    """Return the cores that this process may use, at least 1.

    That is the smaller of the cores in its CPU affinity (hardware threads of one core count once) and its cgroup's CPU
    quota, rounded up. More threads than that wait for each other. `proc` and `cpus`: where Linux shows these facts.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len({_siblings(cpus, cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(proc))]))


def _siblings(cpus: Path, cpu: int) -> str:
    """A name of the core that a CPU is a hardware thread of."""
    return _read(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _quotas(proc: Path) -> Iterator[float]:
    """The CPU quotas, in CPUs, of this process's control groups and of all groups around them (v1 and v2)."""
    groups: dict[str, str] = {}
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            groups["cgroup2"] = group
        elif "cpu" in controllers.split(","):
            groups["cgroup"] = group
    for line in _read(proc / "self" / "mounts").splitlines():
        _, place, kind, options = (*line.split(" "), "", "", "", "")[:4]
        if kind in groups and (kind == "cgroup2" or "cpu" in options.split(",")):
            root = Path(place)
            folder = root / groups[kind].lstrip("/")
            for level in (folder, *folder.parents):
                if level == root or root in level.parents:
                    yield from _quota_of(level)


def _quota_of(group: Path) -> Iterator[float]:
    """The quota of one group: `cpu.max` holds both numbers in v2, v1 has a file for each."""
    numbers = _read(group / "cpu.max").split() or [
        _read(group / "cpu.cfs_quota_us"),
        _read(group / "cpu.cfs_period_us"),
    ]
    if len(numbers) == 2 and all(number.isdigit() and int(number) > 0 for number in numbers):
        yield int(numbers[0]) / int(numbers[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
