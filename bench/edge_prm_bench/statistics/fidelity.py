"""Fidelity of a bundle: two separate questions, each with its own figures.

Quantization: the bundle against its own checkpoint in full precision. Capability: the bundle against a larger model.
Every figure has a bootstrap interval over problems. The noise floor is the same figures of two full-precision runs of
one checkpoint, in another dtype or batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge_prm.aggregate import aggregate
from edge_prm.arrays import Float64
from edge_prm_bench.data import Data
from edge_prm_bench.statistics import metrics
from edge_prm_bench.statistics.coverage import Scored
from edge_prm_bench.statistics.metrics import Estimate

KENDALL_RESAMPLES = 200  # quadratic in the number of traces
FIRST_POSITIONS = 512
"""Tokens that the first range of positions spans; each range after it spans as many as all before."""


@dataclass(frozen=True)
class Pairing:
    """What is compared with which reference, and on what.

    `traces` and `rewards` count what the figures are computed on. `skipped` counts the other traces of the file. `own`
    counts the traces that both sides have rewards for, also those that another row of the table lacks.
    """

    name: str
    reference: str
    data: str
    traces: int
    rewards: int
    skipped: int
    own: int


@dataclass(frozen=True)
class Differences:
    """Absolute differences of step rewards, in [0, 1]: their mean, 99% quantile and maximum."""

    mean: Estimate
    p99: Estimate
    maximum: float


@dataclass(frozen=True)
class Agreement:
    """Spearman's rho and Kendall's tau-b of the scores of traces; `best`: share of problems with the same best
    candidate, NaN without candidates."""

    spearman: Estimate
    kendall: Estimate
    best: Estimate


@dataclass(frozen=True)
class Verdicts:
    """`flip_rate`: share of steps that are weak (below `threshold`) on one side only. `first_weak`: share of traces
    with the same first weak step."""

    threshold: float
    flip_rate: Estimate
    first_weak: Estimate


@dataclass(frozen=True)
class AtPositions:
    """Differences of the `rewards` that are read after `start` tokens of their text, and within `end`."""

    start: int
    end: int
    rewards: int
    mean: Estimate


@dataclass(frozen=True)
class Quantization:
    """One checkpoint, run in two ways. `by_position` is empty where positions are not known (two references)."""

    pairing: Pairing
    difference: Differences
    agreement: Agreement
    verdicts: Verdicts
    by_position: tuple[AtPositions, ...] = ()


@dataclass(frozen=True)
class Capability:
    """Two models, compared by order only, because their rewards are not the same quantity.

    `steps`: Spearman's rho of all step rewards. `order`: share of pairs of candidates of one problem in the same order.
    """

    pairing: Pairing
    agreement: Agreement
    steps: Estimate
    order: Estimate


class _Pair(NamedTuple):
    """Rewards and score of one trace, of the bundle and of the reference."""

    ours: Sequence[float]
    theirs: Sequence[float]
    our_score: float
    their_score: float
    positions: Sequence[int] = ()


_Problems = Sequence[Sequence[_Pair]]


def quantization(
    data: Data, bundle: Scored, reference: Scored, threshold: float = 0.5, kept: Collection[int] | None = None
) -> Quantization:
    """Compare a bundle with its own checkpoint, on the traces with the indices `kept` (None: all)."""
    problems = _pairs(data, bundle, reference, kept)
    flip_rate = metrics.bootstrap(
        problems, lambda sample: metrics.flip_rate(_flat(sample, 0), _flat(sample, 1), threshold)
    )
    first_weak = metrics.bootstrap(problems, lambda sample: _same_first_weak(sample, threshold))
    return Quantization(
        pairing=_pairing(data, bundle, reference, problems),
        difference=_difference(problems),
        agreement=_agreement(problems),
        verdicts=Verdicts(threshold, flip_rate, first_weak),
        by_position=_by_position(problems),
    )


def capability(data: Data, bundle: Scored, reference: Scored, kept: Collection[int] | None = None) -> Capability:
    """Compare a bundle with another model, on the traces with the indices `kept` (None: all)."""
    problems = _pairs(data, bundle, reference, kept)
    return Capability(
        pairing=_pairing(data, bundle, reference, problems),
        agreement=_agreement(problems),
        steps=metrics.bootstrap(problems, lambda sample: metrics.spearman(_flat(sample, 0), _flat(sample, 1))),
        order=metrics.bootstrap(problems, _same_order),
    )


def largest_differences(data: Data, bundle: Scored, reference: Scored, count: int = 5) -> list[int]:
    """Indices of the `count` traces with the largest difference of a reward, largest first."""
    largest = [
        (max(abs(a - b) for a, b in zip(ours, theirs, strict=True)), index)
        for index, (ours, theirs) in enumerate(zip(bundle.rewards, reference.rewards, strict=True))
        if ours is not None and theirs is not None
    ]
    return [index for _, index in sorted(largest, key=lambda pair: (-pair[0], pair[1]))[:count]]


def _pairs(data: Data, bundle: Scored, reference: Scored, kept: Collection[int] | None) -> _Problems:
    """Pairs of rewards by problem, of the kept traces that both sides have rewards for."""
    problems = []
    for group in data.by_problem():
        pairs = []
        for index in group:
            ours, theirs = bundle.rewards[index], reference.rewards[index]
            if ours is None or theirs is None or (kept is not None and index not in kept):
                continue
            scores = aggregate(bundle.aggregate, ours), aggregate(reference.aggregate, theirs)
            pairs.append(_Pair(ours, theirs, *scores, bundle.positions.get(index, ())))
        if pairs:
            problems.append(pairs)
    return problems


def _pairing(data: Data, bundle: Scored, reference: Scored, problems: _Problems) -> Pairing:
    traces = sum(map(len, problems))
    return Pairing(
        name=bundle.name,
        reference=reference.name,
        data=data.name,
        traces=traces,
        rewards=len(_flat(problems, 0)),
        skipped=len(data.traces) - traces,
        own=len(bundle.indices & reference.indices),
    )


def _difference(problems: _Problems) -> Differences:
    return Differences(
        mean=metrics.bootstrap(problems, lambda sample: metrics.mean(_absolute(sample))),
        p99=metrics.bootstrap(problems, lambda sample: metrics.quantile(_absolute(sample), 0.99)),
        maximum=metrics.maximum(_absolute(problems)),
    )


def _by_position(problems: _Problems) -> tuple[AtPositions, ...]:
    """Of the ranges of positions that hold rewards, in order."""
    last = max((position for group in problems for pair in group for position in pair.positions), default=0)
    found, start, end = [], 0, FIRST_POSITIONS
    while start < last:
        within = [[_within(pair, start, end) for pair in group] for group in problems]
        if rewards := len(_flat(within, 0)):
            mean = metrics.bootstrap(
                [group for group in within if _flat([group], 0)], lambda sample: metrics.mean(_absolute(sample))
            )
            found.append(AtPositions(start, end, rewards, mean))
        start, end = end, 2 * end
    return tuple(found)


def _within(pair: _Pair, start: int, end: int) -> _Pair:
    """The rewards of a trace that are read after `start` tokens, and within `end`."""
    kept = [index for index, position in enumerate(pair.positions) if start < position <= end]
    return pair._replace(ours=[pair.ours[index] for index in kept], theirs=[pair.theirs[index] for index in kept])


def _agreement(problems: _Problems) -> Agreement:
    return Agreement(
        spearman=metrics.bootstrap(problems, _of_scores(metrics.spearman)),
        kendall=metrics.bootstrap(problems, _of_scores(metrics.kendall), KENDALL_RESAMPLES),
        best=metrics.bootstrap(problems, _same_best),
    )


def _flat(problems: _Problems, side: int) -> list[float]:
    """All rewards of a side: 0 is the bundle, 1 the reference."""
    return [reward for group in problems for pair in group for reward in (pair.theirs if side else pair.ours)]


def _absolute(problems: _Problems) -> Float64:
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
    """Over the problems with two candidates or more."""
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
