"""What ONNX Runtime's profiler says of a bundle's runs: does anything but token ids and rewards move between devices?

`python -m edge_prm_bench.speed.profile BUNDLE --device cuda` prints the number of copy nodes, and each operator's.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edge_prm
from edge_prm.errors import EdgePRMError, InputError
from edge_prm.output import temporary_folder

MEMCPY = ("MemcpyFromHost", "MemcpyToHost")
"""Operators that ONNX Runtime inserts where the nodes of two devices exchange a tensor."""
_TOKENS = 300
"""Longer than the first cache, so that it grows once."""


@dataclass(frozen=True)
class NodeRun:
    """A node in a run: its name and operator, the shapes of its inputs and outputs, and the bytes that it allocated."""

    name: str
    operator: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    allocated_bytes: int


def memcpy_nodes(bundle: Path, device: str) -> int:
    """How many nodes of a bundle's graph copy a tensor between devices, in runs that grow, trim and branch a cache.

    `device`: as `edge_prm.load` takes it. 0 says that keys and values stay where they are. InputError for a bundle that
    ONNX Runtime does not run; else raises as `edge_prm.load` does.
    """
    return len({run.name for run in profile(bundle, device) if run.operator in MEMCPY})


def profile(bundle: Path, device: str, threads: int | None = 1) -> list[NodeRun]:
    """Every node of every run while a sequence is extended, trimmed and branched; raises as `memcpy_nodes` does."""
    with temporary_folder("edge-prm-profile-") as folder:
        options = {"enable_profiling": True, "profile_file_prefix": str(folder / "profile")}
        with edge_prm.load(bundle, threads=threads, device=device, engine_options=options) as prm:
            end_profiling: Any = getattr(prm.model, "end_profiling", None)
            if end_profiling is None:
                raise InputError(f"{bundle} runs on {prm.manifest.backend}, which has no profiler; give an ONNX bundle")
            _exercise(prm)
            events = json.loads(Path(end_profiling()).read_text(encoding="utf-8"))
    return node_runs(events)


def node_runs(events: Sequence[Any]) -> list[NodeRun]:
    """The runs of nodes among the events of a profile of ONNX Runtime (Chrome's trace format)."""
    return [
        NodeRun(
            name=event["name"].removesuffix("_kernel_time"),
            operator=event["args"]["op_name"],
            inputs=_shapes(event["args"].get("input_type_shape", ())),
            outputs=_shapes(event["args"].get("output_type_shape", ())),
            allocated_bytes=int(event["args"].get("mem_requested_in_use_delta", 0)),
        )
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def _exercise(prm: edge_prm.PRM) -> None:
    """Extend a sequence twice, so that its cache grows, trim it, and extend a branch of it."""
    vocabulary = min(prm.manifest.architecture.vocabulary, 150_000)
    tokens = min(_TOKENS, prm.manifest.context_length // 2 - 1)
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens)
    sequence = prm.model.start()
    for _ in range(2):
        sequence.extend(ids, [tokens - 1])
    sequence.trim(tokens)
    branch = sequence.branch()
    branch.extend(ids[: tokens // 2], [0])
    branch.close()
    sequence.close()


def _shapes(tensors: Sequence[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for tensor in tensors for shape in tensor.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts as one line of JSON: `memcpy_nodes`, and `operators` with the runs of each."""
    parser = argparse.ArgumentParser(description=memcpy_nodes.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    try:
        runs = profile(given.bundle, given.device)
    except EdgePRMError as error:
        parser.error(str(error))
    copies = {run.name for run in runs if run.operator in MEMCPY}
    print(json.dumps({"memcpy_nodes": len(copies), "operators": Counter(run.operator for run in runs)}))


if __name__ == "__main__":
    main()
