"""Statistics of rewards, in numpy: on plain sequences of float, NaN where a value is not defined.

Tests compare each of them with scipy, with scikit-learn, or with values computed by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm import score as scores
from edge_prm.arrays import Float64

RESAMPLES = 1000
SEED = 20_011
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval; `low` and `high` are NaN when it was not resampled."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def mean(values: Sequence[float] | Float64) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def quantile(values: Sequence[float] | Float64, share: float) -> float:
    """The quantile `share` in [0, 1], by linear interpolation between the two nearest values; NaN of nothing."""
    return float(np.quantile(values, share)) if len(values) else float("nan")


def maximum(values: Sequence[float] | Float64) -> float:
    """The largest value; NaN of nothing."""
    return float(np.max(values)) if len(values) else float("nan")


def ranks(values: Sequence[float] | Float64) -> Float64:
    """Ranks from 1, float64 of shape [n]; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], dtype=np.float64)


def spearman(left: Sequence[float] | Float64, right: Sequence[float] | Float64) -> float:
    """Spearman's rho: Pearson's correlation of the ranks; NaN for fewer than two pairs or a constant side."""
    _equally_long(left, right)
    if len(left) < 2:
        return float("nan")
    a, b = ranks(left), ranks(right)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else float("nan")


def kendall(left: Sequence[float] | Float64, right: Sequence[float] | Float64) -> float:
    """Kendall's tau-b: concordant minus discordant pairs, corrected for ties; NaN when one side is constant."""
    _equally_long(left, right)
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    total = untied_left = untied_right = 0.0
    for index in range(len(a) - 1):  # one row of the matrix of pairs at a time: thousands of values fit
        x, y = np.sign(a[index + 1 :] - a[index]), np.sign(b[index + 1 :] - b[index])
        total += float((x * y).sum())
        untied_left += float(np.abs(x).sum())
        untied_right += float(np.abs(y).sum())
    norm = np.sqrt(untied_left * untied_right)
    return float(total / norm) if norm else float("nan")


def auc(scores: Sequence[float] | Float64, positive: Sequence[bool] | npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, a tie counting half.

    By the Mann-Whitney U statistic. NaN without both classes.
    """
    _equally_long(scores, positive)
    is_positive = np.asarray(positive, dtype=bool)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks(scores)[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def flip_rate(left: Sequence[float] | Float64, right: Sequence[float] | Float64, threshold: float) -> float:
    """Share of pairs of which one value is below the threshold and the other is not."""
    _equally_long(left, right)
    return mean((np.asarray(left) >= threshold) != (np.asarray(right) >= threshold))


def first_weak(rewards: Sequence[float], threshold: float) -> int:
    """Index of the first reward below the threshold, -1 when there is none (as ProcessBench labels it)."""
    index = scores.first_weak(rewards, threshold)
    return -1 if index is None else index


def best_of(scores: Sequence[float]) -> int:
    """Index of the highest score, the first of equals; as `PRM.rank` chooses."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def order_agreement(left: Sequence[float], right: Sequence[float]) -> tuple[int, int]:
    """(pairs that `left` orders as `right` does, pairs of different values in `right`)."""
    _equally_long(left, right)
    same = pairs = 0
    for i in range(len(left)):
        for j in range(i + 1, len(left)):
            if right[i] != right[j]:
                pairs += 1
                same += (left[i] - left[j]) * (right[i] - right[j]) > 0
    return same, pairs


def harmonic_mean(left: float, right: float) -> float:
    """2 ab / (a + b); 0 where both are 0, NaN where one is NaN."""
    return 2 * left * right / (left + right) if left + right else 0.0


def bootstrap(
    groups: Sequence[Any], statistic: Callable[[Sequence[Any]], float], resamples: int = RESAMPLES
) -> Estimate:
    """A statistic with its 95% percentile interval, by drawing whole groups (problems) with replacement.

    Steps of one problem are not independent, so they are drawn together. There is no interval with fewer than two
    groups, or where the statistic is NaN on more than half of the resamples; NaN resamples are dropped. The seed is
    fixed. `statistic` is called `resamples + 1` times.
    """
    value = statistic(groups)
    if len(groups) < 2:
        return Estimate(value)
    generator = np.random.default_rng(SEED)
    draws = (generator.integers(0, len(groups), len(groups)) for _ in range(resamples))
    samples = (statistic([groups[index] for index in draw]) for draw in draws)
    drawn = [sample for sample in samples if not np.isnan(sample)]
    if len(drawn) < resamples / 2:
        return Estimate(value)
    tail = (1 - CONFIDENCE) / 2
    return Estimate(value, quantile(drawn, tail), quantile(drawn, 1 - tail))


def _equally_long(left: Sequence[Any] | npt.NDArray[Any], right: Sequence[Any] | npt.NDArray[Any]) -> None:
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values against {len(right)}")
