"""What a benchmark is asked for, and what it found. Every view (terminal, Markdown, HTML, JSON) is made from this."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from edge_prm.manifest import Fidelity
from edge_prm_bench.data import Data
from edge_prm_bench.engine import Engine
from edge_prm_bench.peers import Peer
from edge_prm_bench.speed import latency, process
from edge_prm_bench.speed.device import Device, Throttling
from edge_prm_bench.speed.energy import Energy
from edge_prm_bench.statistics import fidelity, quality
from edge_prm_bench.statistics.coverage import Omission

PARTS = ("latency", "fidelity", "quality")
SCHEMA = "edge-prm-bench/2"
"""2: `left_out` and `failures`; a bundle's `device`; load times, rank and pushes as several runs with their range."""


@dataclass(frozen=True)
class Options:
    """What to measure and on what; `limit` 0 means all traces of a file.

    `fields`: names of the fields of rows in place of those that are detected.
    """

    parts: tuple[str, ...] = PARTS
    data: tuple[Path, ...] = ()
    references: tuple[Path, ...] = ()
    fit: Path | None = None
    limit: int | None = None
    split: str = "auto"
    fields: Any = None
    engine: Engine = field(default_factory=Engine)
    sweep: tuple[int, ...] = ()
    lengths: tuple[int, ...] = latency.LENGTHS
    runs: int = latency.RUNS
    threshold: float = 0.5
    aggregate: str | None = None
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True)
class Speed:
    """Latency and memory of one bundle; what was not measured is empty or None.

    `share_of_limit`: tokens/s at 512 tokens (or at the longest length below), as a share of what the device's int8
    GEMM alone would allow.
    """

    load: process.Load
    prefill: list[latency.Prefill]
    push: latency.Push | None
    rank: latency.Rank | None
    peak_gb: dict[int, float | None]
    threads_sweep: dict[int, float]
    share_of_limit: float
    energy: Energy | None
    energy_tokens: int


@dataclass(frozen=True)
class BundleResult:
    """A bundle and what was measured of it; `device` is what it ran on, "" where it was not run."""

    name: str
    source: str
    recipe: str
    head: str
    size_gb: float
    golden: Fidelity | None
    speed: Speed | None
    device: str = ""


@dataclass(frozen=True)
class Comparison:
    """What pictures are drawn from: rewards of one bundle and its reference on one file."""

    data: Data
    ours: fidelity.Scored
    reference: fidelity.Scored
    kind: str


@dataclass(frozen=True)
class Failure:
    """A bundle, reference or file that could not be used, or not to the end: in which part, and the reason."""

    name: str
    part: str
    reason: str


@dataclass
class Results:
    """Everything that was measured, in the order of the bundles; what numbers leave out; what failed.

    `notes` are sentences on how the data was read.
    """

    device: Device
    threads: int | None
    gemm_gops: float | None = None
    throttling: Throttling | None = None
    bundles: list[BundleResult] = field(default_factory=list)
    quantization: list[fidelity.Quantization] = field(default_factory=list)
    noise_floor: list[fidelity.Quantization] = field(default_factory=list)
    capability: list[fidelity.Capability] = field(default_factory=list)
    step_quality: list[quality.StepQuality] = field(default_factory=list)
    best_of_n: list[quality.BestOfN] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    left_out: list[Omission] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether there is any number of this run."""
        compared = self.quantization or self.capability or self.step_quality or self.best_of_n
        return bool(compared) or any(bundle.speed is not None for bundle in self.bundles)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN and infinity are null; the rewards that pictures are drawn from are not in it."""
        facts = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "comparisons"}
        return {"schema": SCHEMA, **facts}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
