"""Standard output and error on any terminal: any encoding, no colours, a pipe."""

from __future__ import annotations

import contextlib
import os
import sys


def serve_any_encoding() -> None:
    """Make stdout and stderr replace characters that their encoding lacks, in place of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a stream that is replaced, closed or missing
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def colour() -> bool | None:
    """Return False where colours are unwanted (NO_COLOR) or unknown (TERM=dumb), else None: click then decides."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
