"""How faithful a bundle is: two separate questions, never one number.

Quantization: the bundle against its own checkpoint in full precision. Capability: the bundle against a larger model.
Every figure has a bootstrap interval over problems, and comes with the noise floor: what the full-precision model
differs from itself by in another precision or batch shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge_prm.aggregate import aggregate
from edge_prm_bench.data import Data
from edge_prm_bench.statistics import metrics
from edge_prm_bench.statistics.coverage import Rewards as Rewards
from edge_prm_bench.statistics.coverage import Scored as Scored
from edge_prm_bench.statistics.metrics import Estimate

KENDALL_RESAMPLES = 200  # it looks at every pair


@dataclass(frozen=True)
class Quantization:
    """Differences of step rewards, and what they change.

    Computed on `traces`, which hold `rewards` rewards; `left_out` traces of the file are not among them, and `own` are
    those that these two have rewards for, whatever other rows of the table have.
    `spearman` and `kendall` are of the traces' scores; `flips` the share of steps whose verdict at the threshold
    changes; `first_weak` the share of traces whose first weak step is the same one; `best` the share of problems whose
    best candidate is the same one, NaN without candidates.
    """

    ours: str
    reference: str
    data: str
    traces: int
    rewards: int
    left_out: int
    threshold: float
    mean: Estimate
    p99: Estimate
    maximum: float
    spearman: Estimate
    kendall: Estimate
    flips: Estimate
    first_weak: Estimate
    best: Estimate
    own: int


@dataclass(frozen=True)
class Capability:
    """Does the small model order things as the large one does? Rewards of two models are not the same quantity.

    `traces`, `left_out` and `own` are as in Quantization.
    `spearman` and `kendall` are of the traces' scores, `steps` Spearman of all step rewards; `order` is the share of
    pairs of candidates of one problem put in the same order, `best` that of problems with the same best candidate.
    """

    ours: str
    reference: str
    data: str
    traces: int
    left_out: int
    spearman: Estimate
    kendall: Estimate
    steps: Estimate
    order: Estimate
    best: Estimate
    own: int


class _Pair(NamedTuple):
    ours: Sequence[float]
    theirs: Sequence[float]
    our_score: float
    their_score: float


_Problems = Sequence[Sequence[_Pair]]


def quantization(
    data: Data, ours: Scored, reference: Scored, threshold: float = 0.5, kept: Collection[int] | None = None
) -> Quantization:
    """Compare rewards of one checkpoint with those of another way to run it, on the traces `kept` (None: all)."""
    problems, left_out = _pairs(data, ours, reference, kept)
    differences = _differences(problems)
    return Quantization(
        ours=ours.name,
        reference=reference.name,
        data=data.name,
        traces=sum(map(len, problems)),
        rewards=len(differences),
        left_out=left_out,
        threshold=threshold,
        mean=metrics.bootstrap(problems, lambda sample: metrics.mean(_differences(sample))),
        p99=metrics.bootstrap(problems, lambda sample: metrics.quantile(_differences(sample), 0.99)),
        maximum=metrics.maximum(differences),
        spearman=metrics.bootstrap(problems, _of_scores(metrics.spearman)),
        kendall=metrics.bootstrap(problems, _of_scores(metrics.kendall), KENDALL_RESAMPLES),
        flips=metrics.bootstrap(problems, lambda sample: metrics.flips(_flat(sample, 0), _flat(sample, 1), threshold)),
        first_weak=metrics.bootstrap(problems, lambda sample: _same_first_weak(sample, threshold)),
        best=metrics.bootstrap(problems, _same_best),
        own=len(ours.indices & reference.indices),
    )


def capability(data: Data, ours: Scored, reference: Scored, kept: Collection[int] | None = None) -> Capability:
    """Compare rewards of one model with those of another, by order only, on the traces `kept` (None: all)."""
    problems, left_out = _pairs(data, ours, reference, kept)
    return Capability(
        ours=ours.name,
        reference=reference.name,
        data=data.name,
        traces=sum(map(len, problems)),
        left_out=left_out,
        spearman=metrics.bootstrap(problems, _of_scores(metrics.spearman)),
        kendall=metrics.bootstrap(problems, _of_scores(metrics.kendall), KENDALL_RESAMPLES),
        steps=metrics.bootstrap(problems, lambda sample: metrics.spearman(_flat(sample, 0), _flat(sample, 1))),
        order=metrics.bootstrap(problems, _same_order),
        best=metrics.bootstrap(problems, _same_best),
        own=len(ours.indices & reference.indices),
    )


def worst(data: Data, ours: Scored, reference: Scored, count: int = 5) -> list[int]:
    """Indices of the traces with the largest difference of a reward, largest first."""
    largest = [
        (max(abs(a - b) for a, b in zip(mine, theirs, strict=True)), index)
        for index, (mine, theirs) in enumerate(zip(ours.rewards, reference.rewards, strict=True))
        if mine is not None and theirs is not None
    ]
    return [index for _, index in sorted(largest, key=lambda pair: (-pair[0], pair[1]))[:count]]


def _pairs(data: Data, ours: Scored, reference: Scored, kept: Collection[int] | None) -> tuple[_Problems, int]:
    """Pairs of rewards by problem, and how many traces are not kept or have no rewards in one of the two."""
    problems = []
    left_out = 0
    for group in data.by_problem():
        pairs = []
        for index in group:
            mine, theirs = ours.rewards[index], reference.rewards[index]
            if mine is None or theirs is None or (kept is not None and index not in kept):
                left_out += 1
                continue
            pairs.append(_Pair(mine, theirs, aggregate(ours.aggregate, mine), aggregate(reference.aggregate, theirs)))
        if pairs:
            problems.append(pairs)
    return problems, left_out


def _flat(problems: _Problems, side: int) -> list[float]:
    return [reward for group in problems for pair in group for reward in (pair.theirs if side else pair.ours)]


def _differences(problems: _Problems) -> metrics.Floats:
    return np.abs(np.array(_flat(problems, 0), dtype=np.float64) - np.array(_flat(problems, 1), dtype=np.float64))


def _of_scores(statistic: Callable[[Sequence[float], Sequence[float]], float]) -> Callable[[_Problems], float]:
    def of(problems: _Problems) -> float:
        pairs = [pair for group in problems for pair in group]
        return statistic([pair.our_score for pair in pairs], [pair.their_score for pair in pairs])

    return of


def _same_first_weak(problems: _Problems, threshold: float) -> float:
    return metrics.mean(
        [
            metrics.first_weak(pair.ours, threshold) == metrics.first_weak(pair.theirs, threshold)
            for group in problems
            for pair in group
        ]
    )


def _same_best(problems: _Problems) -> float:
    """Over the problems with candidates to choose from."""
    return metrics.mean(
        [
            metrics.best_of([pair.our_score for pair in group]) == metrics.best_of([pair.their_score for pair in group])
            for group in problems
            if len(group) > 1
        ]
    )


def _same_order(problems: _Problems) -> float:
    counts = [
        metrics.order_agreement([pair.our_score for pair in group], [pair.their_score for pair in group])
        for group in problems
    ]
    pairs = sum(count for _, count in counts)
    return sum(same for same, _ in counts) / pairs if pairs else float("nan")
