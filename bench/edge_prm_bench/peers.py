"""Figures of other engines, measured elsewhere, laid beside ours: one JSON object a line.

    {"peer": "llama.cpp Q8_0", "prefill": {"512": 74.1, "2048": 66.0}, "size_gb": 1.9, "peak_gb": 2.3,
     "mean": 0.0033, "p99": 0.012, "spearman": 0.996}

Only `peer` is needed. Lengths may stand at the top as well: `{"peer": "…", "512": 74.1}`. `prefill` is tokens/s; `mean`
and `p99` are differences of reward against full precision, on the data that the bundles are measured on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_prm.errors import InputError


@dataclass(frozen=True)
class Peer:
    """What is known of another engine; None where its line does not say."""

    name: str
    prefill: dict[int, float]
    size_gb: float | None = None
    peak_gb: float | None = None
    mean: float | None = None
    p99: float | None = None
    spearman: float | None = None


def read_peers(paths: Sequence[Path]) -> tuple[Peer, ...]:
    """Read files of peers' lines; InputError names the line that is none, and an engine that has two lines."""
    peers = [peer for path in paths for peer in _read(path)]
    names = [peer.name for peer in peers]
    for peer in peers:
        if names.count(peer.name) > 1:
            raise InputError(f"two lines hold figures of the peer {peer.name!r}; put all its figures into one")
    return tuple(peers)


def _read(path: Path) -> list[Peer]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    peers = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            peers.append(_peer(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number} is not a peer's figures ({error}); "
                'they look like {"peer": "llama.cpp Q8_0", "prefill": {"512": 74.1}}'
            ) from None
    if not peers:
        raise InputError(f"{path} holds no figures of a peer")
    return peers


def _peer(row: Any) -> Peer:
    name = row["peer"]
    if not isinstance(name, str):
        raise ValueError("peer is no name")
    speeds = {**{key: value for key, value in row.items() if key.isdigit()}, **row.get("prefill", {})}
    others = {
        key: float(row[key]) for key in ("size_gb", "peak_gb", "mean", "p99", "spearman") if row.get(key) is not None
    }
    prefill = {int(length): float(speed) for length, speed in speeds.items()}
    if not all(math.isfinite(value) for value in (*prefill.values(), *others.values())):
        raise ValueError("a figure is not finite")
    return Peer(name, prefill, **others)
