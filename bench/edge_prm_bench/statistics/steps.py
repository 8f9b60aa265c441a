"""Quality of a judge, part 1: does it find the first wrong step? ProcessBench's F1, and the AUC of step rewards.

F1 as in ProcessBench (arxiv.org/abs/2412.06559): the harmonic mean of two accuracies, on solutions with a mistake (the
first step below the threshold is the first wrong one) and on correct ones (no step is below it).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edge_prm.arrays import Float64, Int64
from edge_prm_bench.data import Data
from edge_prm_bench.statistics import metrics
from edge_prm_bench.statistics.coverage import Rewards, Scored
from edge_prm_bench.statistics.metrics import Estimate


@dataclass(frozen=True)
class Threshold:
    """A step is weak below `value`, in [0, 1]; `fitted_on` names the file that it was fitted on, "" where it was given.

    Fitted on the measured file itself, it gives the F1 that the judge could reach, not the F1 that it will have.
    """

    value: float
    fitted_on: str = ""


@dataclass(frozen=True)
class Sample:
    """What the figures are computed on: `traces` traces of `data` that all rows of the table have, `erroneous` of them
    with a mistake. `own` counts the labelled traces that this judge has rewards for."""

    data: str
    traces: int
    erroneous: int
    own: int


@dataclass(frozen=True)
class F1:
    """ProcessBench's F1, and its two accuracies: on solutions with a mistake, and on correct ones."""

    value: Estimate
    accuracy_erroneous: float
    accuracy_correct: float


@dataclass(frozen=True)
class StepAuc:
    """AUC of step rewards over `steps` labelled steps; it depends on no threshold."""

    value: Estimate
    steps: int


@dataclass(frozen=True)
class StepQuality:
    """How well the rewards of bundle or reference `name` find the first wrong step."""

    name: str
    sample: Sample
    threshold: Threshold
    f1: F1
    auc: StepAuc


def step_quality(
    data: Data, scored: Scored, threshold: Threshold, kept: Collection[int] | None = None
) -> StepQuality | None:
    """Figures on the traces with the indices `kept` (None: all); None where no trace has a label."""
    own = _labelled(data, scored.rewards)
    if kept is not None:
        scored = scored.only(kept)
    rows = _labelled(data, scored.rewards)
    if not rows:
        return None

    def f1(sample: Sequence[tuple[Sequence[float], int]]) -> float:
        return f1_of(sample, threshold.value)

    steps = sum(len(_labelled_steps(group)) for group in _step_groups(data, scored.rewards))
    return StepQuality(
        name=scored.name,
        sample=Sample(data.name, len(rows), sum(label != -1 for _, label in rows), len(own)),
        threshold=threshold,
        f1=F1(metrics.bootstrap(rows, f1), *_accuracies(rows, threshold.value)),
        auc=StepAuc(step_auc(data, scored.rewards), steps),
    )


def f1_of(rows: Sequence[tuple[Sequence[float], int]], threshold: float) -> float:
    """ProcessBench's F1 of (rewards, first wrong step or -1) rows; NaN unless there are rows of both classes."""
    return metrics.harmonic_mean(*_accuracies(rows, threshold))


def fit_threshold(data: Data, rewards: Rewards) -> float:
    """The threshold with the highest F1 on a file, 0.5 where it has no labels.

    Candidates are the middles between neighbouring rewards, one value below all and one above all. Cost: as many passes
    over the file as it has different rewards.
    """
    rows = _labelled(data, rewards)
    if not rows:
        return 0.5
    table, labels = _padded(rows), np.array([label for _, label in rows])
    values = np.unique(np.concatenate([row for row, _ in rows]))
    middles = (values[:-1] + values[1:]) / 2
    highest, best = -1.0, 0.5
    for threshold in (values[0], *middles, np.nextafter(values[-1], 2)):
        f1 = _f1_of_table(table, labels, threshold)
        if f1 > highest:
            highest, best = f1, float(threshold)
    return best


def step_auc(data: Data, rewards: Rewards) -> Estimate:
    """AUC of step rewards: the positives are steps that are right, as are all steps before them."""

    def of(sample: Sequence[_Steps]) -> float:
        steps = [step for group in sample for step in _labelled_steps(group)]
        return metrics.auc([reward for reward, _ in steps], [label for _, label in steps])

    return metrics.bootstrap(_step_groups(data, rewards), of)


_Steps = Sequence[tuple[float, bool | None]]


def _padded(rows: Sequence[tuple[Sequence[float], int]]) -> Float64:
    """Rewards as [rows, longest], infinite after the last step."""
    table = np.full((len(rows), max(len(row) for row, _ in rows)), np.inf)
    for index, (row, _) in enumerate(rows):
        table[index, : len(row)] = row
    return table


def _f1_of_table(table: Float64, labels: Int64, threshold: float) -> float:
    below = table < threshold
    right = np.where(below.any(axis=1), below.argmax(axis=1), -1) == labels
    parts = [float(right[which].mean()) if which.any() else float("nan") for which in (labels != -1, labels == -1)]
    return metrics.harmonic_mean(*parts)


def _step_groups(data: Data, rewards: Rewards) -> list[_Steps]:
    """Reward and label of each step, by trace."""
    return [
        list(zip(row, trace.right, strict=True))
        for trace, row in zip(data.traces, rewards, strict=True)
        if row is not None and trace.right is not None
    ]


def _labelled_steps(steps: _Steps) -> list[tuple[float, bool]]:
    return [(reward, label) for reward, label in steps if label is not None]


def _labelled(data: Data, rewards: Rewards) -> list[tuple[Sequence[float], int]]:
    return [
        (row, trace.first_wrong)
        for trace, row in zip(data.traces, rewards, strict=True)
        if row is not None and trace.first_wrong is not None
    ]


def _accuracies(rows: Sequence[tuple[Sequence[float], int]], threshold: float) -> tuple[float, float]:
    """Accuracies on the rows with a mistake and on those without."""
    verdicts = [(label, metrics.first_weak(row, threshold) == label) for row, label in rows]
    return (
        metrics.mean([right for label, right in verdicts if label != -1]),
        metrics.mean([right for label, right in verdicts if label == -1]),
    )
