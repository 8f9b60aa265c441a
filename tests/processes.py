"""Processes of their own, for the tests of engines as guests in one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROMPT = "Tom has 3 apples and buys 4 more. How many has he?"
STEPS = ["3 + 4 = 7", "7 - 2 = 5", "The answer is 5."]
HANG_SECONDS = 60
MOMENTS = 20
posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="this needs fork")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own; a hang is an error."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=HANG_SECONDS,
    )
