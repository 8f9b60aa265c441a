"""How many cores a process may use, and that engines take no more threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from processes import python

from edge_prm.cores import usable_cores


def machine(folder: Path, cgroup: str, mounts: str, siblings: dict[int, str]) -> tuple[Path, Path]:
    """Files as Linux shows them: a process's groups and mounts, and the hardware threads of each core."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    (folder / "proc" / "self" / "mounts").write_text(mounts)
    for cpu, text in siblings.items():
        topology = folder / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    return folder / "proc", folder / "cpu"


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("400000 100000", 4), ("20000 100000", 1), ("", 8), ("x 0", 8)],
)
def test_a_quota_of_cgroup_v2_counts(tmp_path: Path, quota: str, cores: int) -> None:
    group = tmp_path / "fs" / "a" / "b"
    group.mkdir(parents=True)
    (group.parent / "cpu.max").write_text(quota + "\n")  # of a group around this process's own
    (group / "cpu.max").write_text("max 100000\n")
    mounts = f"proc /proc proc rw 0 0\ncgroup2 {tmp_path / 'fs'} cgroup2 rw,nosuid 0 0\n"
    assert usable_cores(*machine(tmp_path, "0::/a/b\n", mounts, {})) == cores


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3), ("50000", 1)])
@pytest.mark.parametrize("inside", [True, False])
def test_a_quota_of_cgroup_v1_counts(tmp_path: Path, quota: str, cores: int, inside: bool) -> None:
    """Inside a container the process's group is the root of the mount, and its path is not there."""
    group = tmp_path / "fs" if inside else tmp_path / "fs" / "docker" / "x"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(quota + "\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    mounts = f"cgroup {tmp_path / 'fs'} cgroup rw,cpu,cpuacct 0 0\n"
    assert usable_cores(*machine(tmp_path, "4:cpu,cpuacct:/docker/x\n1:memory:/y\n", mounts, {})) == cores


@pytest.mark.usefixtures("eight_cpus")
def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    assert usable_cores(*machine(tmp_path, "", "", siblings)) == 4


def test_at_least_one_core_is_usable(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path) >= 1
    assert usable_cores() >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this needs CPU affinity")
def test_an_engine_takes_the_cores_of_its_process(demo: Path) -> None:
    code = (
        "import os, sys\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nimport edge_prm\n"
        "from edge_prm.cores import usable_cores\nassert usable_cores() == 1\nmodel = edge_prm.load(sys.argv[1]).model\n"
        "if sys.argv[1].endswith('gguf'): assert model._context._threads == 1\n"
        "else: assert model._session.engine.get_session_options().intra_op_num_threads == 1"
    )
    done = python(code, demo)
    assert done.returncode == 0, done.stderr
