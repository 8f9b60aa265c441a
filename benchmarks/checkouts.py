"""What programs that compare two checkouts share: the process of a checkout, and what a result says of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_DESCRIBE = """
import json
from dataclasses import asdict
from edge_prm_bench.speed.device import describe_device
print(json.dumps(asdict(describe_device())))
"""


def variables(tree: Path) -> dict[str, str]:
    """Environment variables of a process that imports edge-prm, and its tests, from the checkout `tree` only."""
    paths = [tree, tree / "export", tree / "bench", tree / "tests"]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def environment(before: Path, after: Path, threads: int) -> dict[str, Any]:
    """The commits of both checkouts (`-dirty` where files are changed), and the device as `after` describes it."""
    described = subprocess.run(
        [sys.executable, "-c", _DESCRIBE], env=variables(after), capture_output=True, text=True, check=True
    )
    commits = {name: _commit(tree) for name, tree in (("before", before), ("after", after))}
    return {**commits, "threads": threads, "device": json.loads(described.stdout)}


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no git checkout"
