"""Exports that are killed at random moments, and others beside them: never a half-written bundle, never a loss.

EDGE_PRM_KILLS sets how many (15 by default).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_prm.bundle import open_bundle
from edge_prm.manifest import MANIFEST_NAME

pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
pytest.importorskip("onnxruntime", reason='exporting needs onnxruntime: pip install "edge-prm[export]"')
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")

KILLS = int(os.environ.get("EDGE_PRM_KILLS", "15"))
LIMIT = 300  # seconds after which a process hangs


def start(target: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [
        sys.executable,
        "-m",
        "edge_prm.cli.main",
        "export",
        "embedded:demo",
        "--fp32",
        "-o",
        str(target),
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def test_an_export_can_be_killed_at_any_moment(tmp_path: Path) -> None:
    target, other = tmp_path / "out", tmp_path / ".out.partial-backup"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    began = time.monotonic()
    assert start(target).wait(LIMIT) == 0
    full = time.monotonic() - began
    rng = random.Random(os.environ.get("EDGE_PRM_KILLS_SEED", "1"))
    killed = 0
    for _ in range(KILLS):
        replace = target.exists() and rng.random() < 0.8
        process = start(target, *["--force"] * replace)
        # most moments lie where the work is, many at its end, where the folders change places
        time.sleep(full * (rng.uniform(0.7, 1.1) if rng.random() < 0.5 else rng.uniform(0.1, 1)))
        process.send_signal(signal.SIGKILL)
        killed += process.wait(LIMIT) == -signal.SIGKILL
        if replace:
            assert target.is_dir(), "a bundle that is being replaced is never gone"
        if target.exists():
            open_bundle(target, verify_all=True)
        assert (other / "thesis.tex").read_text() == "years of work"
        if rng.random() < 0.3 and (target / MANIFEST_NAME).is_file():
            target.rename(tmp_path / f"earlier-{killed}-{_}")
    assert killed, "no process was killed before its end"
    assert start(target, "--force").wait(LIMIT) == 0
    open_bundle(target, verify_all=True)
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("earlier-")}
    assert left == {"out", other.name}
