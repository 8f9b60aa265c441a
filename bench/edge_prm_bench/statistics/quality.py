"""Is the judge any good? Its rewards against labels: ProcessBench's F1, step AUC, and best of N.

F1 as in ProcessBench (arxiv.org/abs/2412.06559): the harmonic mean of two accuracies, on solutions with a mistake (the
first step below the threshold is the first wrong one) and on right ones (no step is below it).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from edge_prm.aggregate import aggregate
from edge_prm_bench.data import Data
from edge_prm_bench.statistics import metrics
from edge_prm_bench.statistics.coverage import Rewards, Scored
from edge_prm_bench.statistics.metrics import Estimate

MOST_SUBSETS = 1000
SEED = 20_011


@dataclass(frozen=True)
class StepQuality:
    """ProcessBench's figures at a threshold, and the AUC of step rewards, which needs none.

    `fitted_on` names the file that the threshold was fitted on; "" for a threshold that was given. Fitted on the same
    file, F1 is what this judge could reach, not what it will. F1 is computed on `traces`, those with a usable label
    that all rows of the table have; `own` counts those that this judge has. The AUC is of `auc_steps` labelled steps.
    """

    name: str
    data: str
    traces: int
    erroneous: int
    threshold: float
    fitted_on: str
    f1: Estimate
    accuracy_erroneous: float
    accuracy_correct: float
    step_auc: Estimate
    auc_steps: int
    own: int


@dataclass(frozen=True)
class BestOfN:
    """Accuracy of the answer chosen among N candidates, over all subsets of N; lists run along `n`.

    Computed on `problems`. Not among them are problems of which a candidate has no label or no reward in a row of the
    table (`incomplete`), and those with fewer candidates than the largest N (`small`).
    """

    name: str
    data: str
    aggregate: str
    problems: int
    n: list[int]
    chosen: list[float]
    chosen_interval: list[Estimate]
    majority: list[float]
    random: list[float]
    oracle: list[float]
    incomplete: int = 0
    small: int = 0

    @property
    def verdict(self) -> str:
        """One sentence; it does not hide that majority vote won."""
        best, vote, chance = self.chosen[-1], self.majority[-1], self.random[-1]
        if math.isnan(best) or len(self.n) < 2:
            return f"{self.data} has no problem with two candidates or more, so there is nothing to choose from."
        against = "majority vote has no answers to count"
        if not math.isnan(vote):
            against = f"majority vote {'wins' if vote > best else 'loses' if vote < best else 'ties'} with {vote:.1%}"
        chosen = f"Best of {self.n[-1]}: {self.name} chooses right {best:.1%} of the time"
        return f"{chosen}, {against}; chance is {chance:.1%}."


def step_quality(
    data: Data, scored: Scored, threshold: float, fitted_on: str = "", kept: Collection[int] | None = None
) -> StepQuality | None:
    """Figures of a file with labels of first wrong steps, on the traces `kept` (None: all); None when it has none."""
    own = _labelled(data, scored.rewards)
    if kept is not None:
        scored = scored.only(kept)
    rows = _labelled(data, scored.rewards)
    if not rows:
        return None
    groups = [[row] for row in rows]

    def f1(sample: Sequence[Sequence[tuple[Sequence[float], int]]]) -> float:
        return f1_of([row for group in sample for row in group], threshold)

    wrong, right = _accuracies(rows, threshold)
    return StepQuality(
        name=scored.name,
        data=data.name,
        traces=len(rows),
        erroneous=sum(label != -1 for _, label in rows),
        threshold=threshold,
        fitted_on=fitted_on,
        f1=metrics.bootstrap(groups, f1),
        accuracy_erroneous=wrong,
        accuracy_correct=right,
        step_auc=step_auc(data, scored.rewards),
        auc_steps=sum(len(_labelled_steps(group)) for group in _step_groups(data, scored.rewards)),
        own=len(own),
    )


def f1_of(rows: Sequence[tuple[Sequence[float], int]], threshold: float) -> float:
    """ProcessBench's F1 of (rewards, first wrong step or -1) rows; NaN unless there are rows of both kinds."""
    return metrics.harmonic_mean(*_accuracies(rows, threshold))


def fit_threshold(data: Data, rewards: Rewards) -> float:
    """The threshold with the highest F1 on a file: the middle between two rewards that stand next to each other."""
    rows = _labelled(data, rewards)
    if not rows:
        return 0.5
    longest = max(len(row) for row, _ in rows)
    table = np.full((len(rows), longest), np.inf)
    for index, (row, _) in enumerate(rows):
        table[index, : len(row)] = row
    labels = np.array([label for _, label in rows])
    values = np.unique(np.concatenate([row for row, _ in rows]))
    thresholds = np.concatenate([[values[0]], (values[:-1] + values[1:]) / 2, [np.nextafter(values[-1], 2)]])
    best = (-1.0, 0.5)
    for threshold in thresholds:
        below = table < threshold
        right = np.where(below.any(axis=1), below.argmax(axis=1), -1) == labels
        parts = [float(right[which].mean()) if which.any() else float("nan") for which in (labels != -1, labels == -1)]
        f1 = metrics.harmonic_mean(*parts)
        if f1 > best[0]:
            best = (f1, float(threshold))
    return best[1]


def step_auc(data: Data, rewards: Rewards) -> Estimate:
    """AUC of step rewards: does a step that is right, as all before it are, score above one that is not?"""

    def of(sample: Sequence[_Steps]) -> float:
        steps = [step for group in sample for step in _labelled_steps(group)]
        return metrics.auc([reward for reward, _ in steps], [label for _, label in steps])

    return metrics.bootstrap(_step_groups(data, rewards), of)


_Steps = Sequence[tuple[float, bool | None]]


def _step_groups(data: Data, rewards: Rewards) -> list[_Steps]:
    """Reward and label of each step, by trace."""
    return [
        list(zip(row, trace.right, strict=True))
        for trace, row in zip(data.traces, rewards, strict=True)
        if row is not None and trace.right is not None
    ]


def _labelled_steps(steps: _Steps) -> list[tuple[float, bool]]:
    return [(reward, label) for reward, label in steps if label is not None]


def best_of_n(data: Data, scored: Scored, kept: Collection[int] | None = None) -> BestOfN | None:
    """Best-of-N accuracy by N = 1, 2, 4, …, with candidates of `kept` (None: all); None without labels of candidates.

    Over all subsets of N candidates of each problem, exactly. Problems count that have the largest N, so that every N
    is measured on the same ones.
    """
    if kept is not None:
        scored = scored.only(kept)
    problems, incomplete = [], 0
    for group in data.by_problem():
        members = [(data.traces[index], scored.rewards[index]) for index in group]
        if all(trace.correct is not None and row is not None for trace, row in members):
            problems.append([(aggregate(scored.aggregate, row or ()), trace) for trace, row in members])
        else:
            incomplete += any(trace.correct is not None for trace, _ in members)
    if not problems:
        return None
    sizes = Counter(len(members) for members in problems)
    most = sizes.most_common(1)[0][0]
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    if counts[-1] != most:
        counts.append(most)
    used = [members for members in problems if len(members) >= most]
    correct = [[bool(trace.correct) for _, trace in members] for members in used]
    scores = [[score for score, _ in members] for members in used]
    answers = [[trace.answer for _, trace in members] for members in used]
    chosen = [[chosen_accuracy(s, c, n) for s, c in zip(scores, correct, strict=True)] for n in counts]
    return BestOfN(
        name=scored.name,
        data=data.name,
        aggregate=scored.aggregate,
        problems=len(used),
        n=counts,
        chosen=[metrics.mean(row) for row in chosen],
        chosen_interval=[metrics.bootstrap(row, metrics.mean) for row in chosen],
        majority=[
            metrics.mean([vote_accuracy(a, c, n) for a, c in zip(answers, correct, strict=True)]) for n in counts
        ],
        random=[metrics.mean([metrics.mean(c) for c in correct])] * len(counts),
        oracle=[metrics.mean([oracle_accuracy(c, n) for c in correct]) for n in counts],
        incomplete=incomplete,
        small=len(problems) - len(used),
    )


def chosen_accuracy(scores: Sequence[float], correct: Sequence[bool], n: int) -> float:
    """Chance that the best of a random subset of n is correct; the first of equals is chosen.

    The candidate of rank k (from 0) is the best of the subsets that hold it and none of the k before it.
    """
    total = len(scores)
    order = sorted(range(total), key=lambda index: (-scores[index], index))
    chances = [math.comb(total - 1 - rank, n - 1) / math.comb(total, n) for rank in range(total)]
    return sum(chance for chance, index in zip(chances, order, strict=True) if correct[index])


def oracle_accuracy(correct: Sequence[bool], n: int) -> float:
    """Chance that a random subset of n holds a correct candidate."""
    return 1 - math.comb(len(correct) - sum(correct), n) / math.comb(len(correct), n)


def vote_accuracy(answers: Sequence[str | None], correct: Sequence[bool], n: int) -> float:
    """Chance that the most frequent answer of a random subset of n is correct; equals share it. NaN without answers.

    Over all subsets where there are few, over the same random ones where there are many. A candidate without an answer
    has no vote.
    """
    if all(answer is None for answer in answers):
        return float("nan")
    total = len(answers)
    if math.comb(total, n) <= MOST_SUBSETS:
        subsets = list(combinations(range(total), n))
    else:
        rng = random.Random(SEED)
        subsets = [tuple(rng.sample(range(total), n)) for _ in range(MOST_SUBSETS)]
    return metrics.mean([_vote(answers, correct, subset) for subset in subsets])


def _vote(answers: Sequence[str | None], correct: Sequence[bool], subset: Sequence[int]) -> float:
    votes = Counter(answers[index] for index in subset if answers[index] is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    right = {answers[index] for index in subset if correct[index]}
    return sum(winner in right for winner in winners) / len(winners)


def _labelled(data: Data, rewards: Rewards) -> list[tuple[Sequence[float], int]]:
    return [
        (row, trace.first_wrong)
        for trace, row in zip(data.traces, rewards, strict=True)
        if row is not None and trace.first_wrong is not None
    ]


def _accuracies(rows: Sequence[tuple[Sequence[float], int]], threshold: float) -> tuple[float, float]:
    """Share of rows judged right: of those with a mistake, and of those without."""
    judged = [(label, metrics.first_weak(row, threshold) == label) for row, label in rows]
    return (
        metrics.mean([right for label, right in judged if label != -1]),
        metrics.mean([right for label, right in judged if label == -1]),
    )
