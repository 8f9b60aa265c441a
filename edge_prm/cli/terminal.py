"""Standard output and error as they are: any encoding, a dumb terminal, a pipe."""

from __future__ import annotations

import contextlib
import os
import sys


def serve_any_encoding() -> None:
    """Replace characters that a stream's encoding lacks, instead of ending in a traceback in the middle of output."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a stream that is replaced, closed or missing
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def colour() -> bool | None:
    """False where colours are unwanted (NO_COLOR) or unknown (TERM=dumb); None decides by whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
