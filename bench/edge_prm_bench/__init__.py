"""Latency, memory, fidelity and quality of bundles; see `edge-prm bench`."""

from __future__ import annotations

import importlib.util

from edge_prm.errors import MissingExtraError

NEEDED = ("onnxruntime", "onnx", "matplotlib", "jinja2", "tabulate")


def check_modules() -> None:
    """MissingExtraError that names every module a benchmark needs and does not find."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise MissingExtraError("bench", missing)
