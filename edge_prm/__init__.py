"""Score reasoning, step by step, where it happens.

    import edge_prm

    prm = edge_prm.load("prm-int8")
    prm.score("What is 2 + 3 * 4?", ["3 * 4 = 12", "2 + 12 = 14"]).rewards

Errors are in `edge_prm.errors`, and `except edge_prm.EdgePRMError` catches all of them. Names are imported when they
are first used, so that `import edge_prm` costs next to nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # not from typing, which costs more than all of this package's own start
if TYPE_CHECKING:
    from typing import Any

    from edge_prm import errors
    from edge_prm.errors import EdgePRMError
    from edge_prm.prm import PRM, load
    from edge_prm.score import Score
    from edge_prm.session import Session
    from edge_prm.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = ["PRM", "EdgePRMError", "Score", "Session", "Trajectory", "__version__", "errors", "load"]

_HOMES = {
    "EdgePRMError": "edge_prm.errors",
    "PRM": "edge_prm.prm",
    "Score": "edge_prm.score",
    "Session": "edge_prm.session",
    "Trajectory": "edge_prm.trajectory",
    "load": "edge_prm.prm",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("edge_prm.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
