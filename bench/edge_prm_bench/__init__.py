"""Latency, memory, fidelity and quality of bundles; see `edge-prm bench`."""

from __future__ import annotations

from collections.abc import Collection

from edge_prm.errors import MissingExtraError
from edge_prm.extras import missing_modules

EXTRA = "bench"
FOR_REPORT = ("matplotlib", "jinja2")
FOR_LATENCY = ("onnx", "onnxruntime")
"""What the int8 limit of the device is measured with. An engine asks for its own modules when a bundle is loaded."""


def check_modules(parts: Collection[str], report: bool) -> None:
    """MissingExtraError that names every module of the extra that these parts need and that is not installed."""
    spared = {*(() if report else FOR_REPORT), *(() if "latency" in parts else FOR_LATENCY)}
    if missing := [name for name in missing_modules(EXTRA) if name not in spared]:
        raise MissingExtraError(EXTRA, missing)
