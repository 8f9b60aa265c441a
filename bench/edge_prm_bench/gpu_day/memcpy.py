"""Copies between main memory and a GPU inside a graph, counted in a profile of ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import edge_prm
from edge_prm.output import temporary_folder

_STEPS = ("First we count them all.", "Then we count them once more.", "The answer is 12.")


def memcpy_nodes(bundle: Path, device: str) -> int:
    """Nodes that copy between devices in a run of an ONNX bundle on a device; 0: keys and values stay where they are.

    Raises what `edge_prm.load` and a push raise.
    """
    with temporary_folder("edge-prm-profile-") as folder:
        profiled = {"enable_profiling": True, "profile_file_prefix": str(folder / "run")}
        with (
            edge_prm.load(bundle, device=device, engine_options=profiled) as prm,
            prm.session("How many apples?") as session,
        ):
            for step in _STEPS:
                session.push(step)
        (profile,) = folder.glob("run*.json")  # written when the session is freed
        return copies_in(json.loads(profile.read_text(encoding="utf-8")))


def copies_in(events: Iterable[Mapping[str, Any]]) -> int:
    """Different nodes in the events of a profile that copy between devices."""
    copies = {
        event["name"]
        for event in events
        if event.get("cat") == "Node" and str(event.get("args", {}).get("op_name", "")).startswith("Memcpy")
    }
    return len(copies)
