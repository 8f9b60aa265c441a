"""What a benchmark is to measure, and what it measured. Every view (terminal, Markdown, HTML, JSON) is made from
`Results`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from edge_prm.manifest import Fidelity
from edge_prm.records import Fields
from edge_prm_bench.baselines import Baseline
from edge_prm_bench.data import Data
from edge_prm_bench.engine import Engine
from edge_prm_bench.speed import latency, process
from edge_prm_bench.speed.device import Device, Throttling
from edge_prm_bench.speed.energy import Energy
from edge_prm_bench.speed.gemm import Limit
from edge_prm_bench.speed.nvml import CardFacts
from edge_prm_bench.statistics.best_of_n import BestOfN
from edge_prm_bench.statistics.coverage import Omission, Scored
from edge_prm_bench.statistics.fidelity import Capability, Quantization
from edge_prm_bench.statistics.steps import StepQuality

PARTS = ("latency", "fidelity", "quality")
SCHEMA = "edge-prm-bench/3"
"""3: figures are grouped (environment, fidelity, quality), `left_out` is `skipped`, `peers` are `baselines`.
2: what figures leave out and what failed; a bundle's `device`; load, rank and pushes as several runs with their
range."""


@dataclass(frozen=True)
class Input:
    """Files to measure on. `limit`: traces of each file; 0 for all, None for as many as a reference has, or else 64.

    `split` divides completions into steps; `fields` names fields of rows in place of the detected ones; `fit` is the
    labelled file that the threshold of F1 is fitted on.
    """

    data: tuple[Path, ...] = ()
    references: tuple[Path, ...] = ()
    fit: Path | None = None
    limit: int | None = None
    split: str = "auto"
    fields: Fields | None = None


@dataclass(frozen=True)
class Timed:
    """What is timed: texts of these `lengths` in tokens, `runs` times each, and other numbers of threads (`sweep`)."""

    lengths: tuple[int, ...] = latency.LENGTHS
    runs: int = latency.RUNS
    sweep: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """`threshold`: a step with a lower reward is weak. `aggregate`: of step rewards, None for each bundle's own."""

    threshold: float = 0.5
    aggregate: str | None = None


@dataclass(frozen=True)
class Options:
    """What to measure (`parts` of PARTS), on what, and how; `peers` are figures of other engines."""

    parts: tuple[str, ...] = PARTS
    input: Input = field(default_factory=Input)
    timed: Timed = field(default_factory=Timed)
    scoring: Scoring = field(default_factory=Scoring)
    engine: Engine = field(default_factory=Engine)
    peers: tuple[Baseline, ...] = ()

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options from flat keywords, such as `data=` or `runs=`; TypeError for an unknown keyword."""
        groups: dict[str, Any] = {
            name: group(**{f.name: given.pop(f.name) for f in fields(group) if f.name in given})
            for name, group in (("input", Input), ("timed", Timed), ("scoring", Scoring))
        }
        return cls(**groups, **given)


@dataclass(frozen=True)
class FixedLength:
    """What is measured at one length only: the length of `tokens` that is nearest to 512.

    `share_of_limit`: tokens/s as a share of what matrix multiplications alone would allow, at the rate of `limit`; None
    for recipes and devices whose limit is not measured.
    `threads_sweep`: tokens/s by number of threads. `energy`: of one text; None where the device does not measure it.
    """

    tokens: int
    tokens_per_second: float
    share_of_limit: float | None
    threads_sweep: dict[int, float]
    energy: Energy | None
    limit: Limit | None = None


@dataclass(frozen=True)
class Speed:
    """Latency and memory of a bundle; `push` and `rank` are None where the context is too short for them.

    `peak_gb`: peak resident memory, GB, by length in tokens; None where the system does not report it. `device_gb`: the
    same of a GPU's memory, empty on a CPU.
    """

    load: process.Load
    prefill: tuple[latency.Prefill, ...]
    push: latency.Push | None
    rank: latency.Rank | None
    peak_gb: dict[int, float | None]
    fixed: FixedLength
    device_gb: dict[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleResult:
    """A bundle and its figures; `size_gb` of all files; `device`: cpu, cuda:0 or gpu, "" where it was not run."""

    name: str
    source: str
    recipe: str
    head: str
    size_gb: float
    golden: Fidelity | None
    speed: Speed | None
    device: str = ""


@dataclass(frozen=True)
class Environment:
    """The device and its threads; `gemm_gops`: 10^9 operations/s of its int8 GEMM, None where no speed was measured.
    `cards`: the NVIDIA cards that bundles ran on, by device."""

    device: Device
    threads: int
    gemm_gops: float | None = None
    throttling: Throttling | None = None
    cards: dict[str, CardFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Rewards of a bundle and a reference on one file, for pictures; `of_quantization`: they are of one checkpoint."""

    data: Data
    bundle: Scored
    reference: Scored
    of_quantization: bool


@dataclass(frozen=True)
class FidelityResults:
    """Comparisons of rewards with references; `comparisons` are the rewards themselves, and are not in the JSON."""

    quantization: tuple[Quantization, ...] = ()
    noise_floor: tuple[Quantization, ...] = ()
    capability: tuple[Capability, ...] = ()
    comparisons: tuple[Comparison, ...] = field(default=(), metadata={"json": False})

    @classmethod
    def joined(cls, parts: Iterable[FidelityResults]) -> FidelityResults:
        """The results of several files as one."""
        parts = list(parts)
        return cls(*(tuple(item for part in parts for item in getattr(part, f.name)) for f in fields(cls)))


@dataclass(frozen=True)
class QualityResults:
    """Comparisons of rewards with labels."""

    steps: tuple[StepQuality, ...] = ()
    best_of_n: tuple[BestOfN, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable[QualityResults]) -> QualityResults:
        """The results of several files as one."""
        parts = list(parts)
        return cls(*(tuple(item for part in parts for item in getattr(part, f.name)) for f in fields(cls)))


@dataclass(frozen=True)
class Failure:
    """A bundle, reference or file that could not be used, or not to the end: in which part, and the reason."""

    name: str
    part: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything that was measured, in the order of the bundles; what figures skip; what failed.

    `notes` are sentences on how the data was read.
    """

    environment: Environment
    bundles: tuple[BundleResult, ...] = ()
    fidelity: FidelityResults = field(default_factory=FidelityResults)
    quality: QualityResults = field(default_factory=QualityResults)
    baselines: tuple[Baseline, ...] = ()
    skipped: tuple[Omission, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether there is any figure of this run."""
        compared = (
            self.fidelity.quantization or self.fidelity.capability or self.quality.steps or self.quality.best_of_n
        )
        return bool(compared) or any(bundle.speed is not None for bundle in self.bundles)

    def as_dict(self) -> dict[str, Any]:
        """The JSON document: keys are names of fields, NaN and infinity are null."""
        facts: dict[str, Any] = _plain(self)
        return {"schema": SCHEMA, **facts}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.metadata.get("json", True)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
