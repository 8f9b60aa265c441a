"""The figures of a run as one JSON document, `edge-prm-gpu-day/1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_prm.manifest import MANIFEST_NAME, read_manifest
from edge_prm_bench.engine import default_threads
from edge_prm_bench.gpu_day.plan import (
    CHECKPOINT,
    EXPORT,
    Asked,
    checkpoint_task,
    export_tasks,
    measure_tasks,
    subject_of,
)
from edge_prm_bench.gpu_day.plan import has_torch as torch_is_here
from edge_prm_bench.gpu_day.runner import Row, newest
from edge_prm_bench.gpu_day.scale import ATTENTIONS, CPU, Bundle
from edge_prm_bench.speed.device import PACKAGES, describe_device, installed_versions
from edge_prm_bench.speed.latency import gop_per_token
from edge_prm_bench.speed.nvml import card_of
from edge_prm_bench.speed.report_line import plain

SCHEMA = "edge-prm-gpu-day/1"
_VERSIONS = (*PACKAGES, "torch", "transformers", "nvidia-ml-py")

_Found = dict[tuple[str, str], Row]


def document(asked: Asked, rows: Sequence[Row]) -> dict[str, Any]:
    """All figures of a run as JSON values; what is not measured is null, and what failed is under `failures`."""
    found = newest(rows)
    return {
        "schema": SCHEMA,
        "environment": _environment(asked, found),
        "checkpoint": {"scale": asked.scale.name, "shape": plain(asked.scale.shape), **_sizes(found)},
        "bundles": [_bundle(asked, bundle, found) for bundle in asked.bundles],
        "torch": [_torch(asked, attention, found) for attention in ATTENTIONS if torch_is_here()],
        "failures": _failures(asked, found),
        "notes": _notes(asked, found),
    }


def _environment(asked: Asked, found: _Found) -> dict[str, Any]:
    subject = f"device {asked.device}"
    limits = [value for kind in ("fp16", "int8") if (value := _value(found, subject, kind)) is not None]
    return {
        "run_on": asked.device,
        "card": _value(found, subject, "card"),
        "limits": limits,
        "device": {**plain(describe_device()), "versions": installed_versions(_VERSIONS)},
        "threads": asked.threads or default_threads(),
    }


def _sizes(found: _Found) -> dict[str, Any]:
    written = _value(found, CHECKPOINT, CHECKPOINT) or {}
    return {"parameters": written.get("parameters"), "bytes": written.get("bytes")}


def _bundle(asked: Asked, bundle: Bundle, found: _Found) -> dict[str, Any]:
    device = asked.device_of(bundle)
    subject = subject_of(bundle.recipe, device)
    exported = found.get((f"{EXPORT} {bundle.recipe}", EXPORT), {})
    fields = ("bytes", "mean_difference", "max_difference", "tolerance", "within_tolerance")
    value = exported.get("value")
    return {
        "recipe": bundle.recipe,
        "device": device,
        "export": None if value is None else {"seconds": exported["seconds"], **{name: value[name] for name in fields}},
        **_speeds(found, subject),
        "share_of_limit": _share(asked, bundle, found),
        **{name: _value(found, subject, name) for name in ("check", "push", "rank", "memory", "memcpy", "energy")},
    }


def _torch(asked: Asked, attention: str, found: _Found) -> dict[str, Any]:
    subject = subject_of(f"torch {attention}", asked.device)
    return {
        "attention": attention,
        "dtype": "bf16",
        "device": asked.device,
        **_speeds(found, subject),
        **{name: _value(found, subject, name) for name in ("memory", "rewards")},
    }


def _speeds(found: _Found, subject: str) -> dict[str, Any]:
    prefill = [row["value"] for (of, name), row in found.items() if of == subject and name.startswith("prefill ")
               and "value" in row]  # fmt: skip
    return {"prefill": sorted(prefill, key=lambda value: int(value["tokens"]))}


def _share(asked: Asked, bundle: Bundle, found: _Found) -> dict[str, Any] | None:
    """Share of matrix multiplication alone that linear layers reach at each length, of fp16 or of the CPU's int8."""
    kind = "fp16" if not bundle.compared else bundle.recipe
    limit = _value(found, f"device {asked.device}", kind)
    folder = asked.bundle(bundle.recipe)
    if limit is None or not (folder / MANIFEST_NAME).exists():
        return None
    gop = gop_per_token(read_manifest(folder))
    speeds = _speeds(found, subject_of(bundle.recipe, asked.device_of(bundle)))["prefill"]
    return {str(speed["tokens"]): speed["tokens_per_second"] * gop / limit["gops"] for speed in speeds}


def _failures(asked: Asked, found: _Found) -> list[dict[str, str]]:
    """What has no value of all that the run was to measure; `not begun` where no run came to it."""
    tasks = [checkpoint_task(asked), *export_tasks(asked, reduce_range=False), *measure_tasks(asked)]
    rows = [(task.subject, name, found.get((task.subject, name), {})) for task in tasks for name in task.figures]
    return [
        {"subject": subject, "figure": name, "reason": row.get("failed", "not begun")}
        for subject, name, row in rows
        if "value" not in row
    ]


def _notes(asked: Asked, found: _Found) -> list[str]:
    """What a reader must know about the figures."""
    notes = ["The weights are random: speed, memory and drift mean something, rewards and their fidelity do not."]
    if not torch_is_here():
        notes.append("torch or transformers is not installed, so there is nothing to compare with.")
    if asked.device == CPU:
        notes.append("This run was on a CPU: it says nothing about a GPU.")
    elif card_of(asked.device) is None:
        notes.append("Memory of the GPU and energy are not known without nvidia-ml-py (pip install nvidia-ml-py).")
    return notes


def _value(found: _Found, subject: str, figure: str) -> Any:
    return found.get((subject, figure), {}).get("value")
