"""Quality of a judge, part 2: best of N. How often is the answer right that it chooses among N candidates?"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

from edge_prm.aggregate import aggregate
from edge_prm_bench.data import Data, Trace
from edge_prm_bench.statistics import metrics
from edge_prm_bench.statistics.coverage import Scored
from edge_prm_bench.statistics.metrics import Estimate

MOST_SUBSETS = 1000
SEED = 20_011


@dataclass(frozen=True)
class BestOfNPoint:
    """Accuracies with `n` candidates: of the candidate with the best score, of majority vote (NaN without answers), of
    a random candidate, and of an oracle that knows the labels."""

    n: int
    chosen: Estimate
    majority: float
    random: float
    oracle: float


@dataclass(frozen=True)
class BestOfN:
    """Accuracy of the answer chosen among N candidates, over all subsets of N; `points` by increasing N.

    Computed on `problems` problems. Two groups are not among them: `incomplete` problems, of which a candidate has no
    label or no reward in a row of the table, and `small` ones, which have fewer candidates than the largest N.
    """

    name: str
    data: str
    aggregate: str
    problems: int
    points: tuple[BestOfNPoint, ...]
    incomplete: int = 0
    small: int = 0

    @property
    def last(self) -> BestOfNPoint:
        """The point with the most candidates."""
        return self.points[-1]

    @property
    def verdict(self) -> str:
        """The result at the largest N in one sentence, also where majority vote wins."""
        if math.isnan(self.last.chosen.value) or len(self.points) < 2:
            return f"{self.data} has no problem with two candidates or more, so there is nothing to choose from."
        best, vote = self.last.chosen.value, self.last.majority
        against = "majority vote has no answers to count"
        if not math.isnan(vote):
            against = f"majority vote {'wins' if vote > best else 'loses' if vote < best else 'ties'} with {vote:.1%}"
        chosen = f"Best of {self.last.n}: {self.name} chooses right {best:.1%} of the time"
        return f"{chosen}, {against}; chance is {self.last.random:.1%}."


@dataclass(frozen=True)
class _Problem:
    """Score, label and answer of each candidate of a problem."""

    scores: tuple[float, ...]
    correct: tuple[bool, ...]
    answers: tuple[str | None, ...]


def best_of_n(data: Data, scored: Scored, kept: Collection[int] | None = None) -> BestOfN | None:
    """Best-of-N accuracy for N = 1, 2, 4, ... and the most frequent number of candidates; None without labels.

    With the candidates of the indices `kept` (None: all), over all subsets of N candidates of each problem, exactly.
    Only problems with at least the largest N candidates count, so that every N is measured on the same problems.
    """
    if kept is not None:
        scored = scored.only(kept)
    problems, incomplete = _problems(data, scored)
    if not problems:
        return None
    most = Counter(len(problem.scores) for problem in problems).most_common(1)[0][0]
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    used = [problem for problem in problems if len(problem.scores) >= most]
    return BestOfN(
        name=scored.name,
        data=data.name,
        aggregate=scored.aggregate,
        problems=len(used),
        points=tuple(_point(used, n) for n in counts),
        incomplete=incomplete,
        small=len(problems) - len(used),
    )


def _problems(data: Data, scored: Scored) -> tuple[list[_Problem], int]:
    """The problems of which all candidates have a label and rewards, and the number of problems with some labels."""
    problems, incomplete = [], 0
    for group in data.by_problem():
        members = [(data.traces[index], scored.rewards[index]) for index in group]
        if all(trace.correct is not None and rewards is not None for trace, rewards in members):
            problems.append(_problem(scored.aggregate, members))
        else:
            incomplete += any(trace.correct is not None for trace, _ in members)
    return problems, incomplete


def _problem(name: str, members: Sequence[tuple[Trace, Sequence[float] | None]]) -> _Problem:
    return _Problem(
        scores=tuple(aggregate(name, rewards or ()) for _, rewards in members),
        correct=tuple(bool(trace.correct) for trace, _ in members),
        answers=tuple(trace.answer for trace, _ in members),
    )


def _point(problems: Sequence[_Problem], n: int) -> BestOfNPoint:
    return BestOfNPoint(
        n=n,
        chosen=metrics.bootstrap([chosen_accuracy(p.scores, p.correct, n) for p in problems], metrics.mean),
        majority=metrics.mean([vote_accuracy(p.answers, p.correct, n) for p in problems]),
        random=metrics.mean([metrics.mean(p.correct) for p in problems]),
        oracle=metrics.mean([oracle_accuracy(p.correct, n) for p in problems]),
    )


def chosen_accuracy(scores: Sequence[float], correct: Sequence[bool], n: int) -> float:
    """Probability that the best of a random subset of n is correct; the first of equals is chosen.

    The candidate of rank k (from 0) is the best of the subsets that hold it and none of the k before it.
    """
    total = len(scores)
    order = sorted(range(total), key=lambda index: (-scores[index], index))
    chances = [math.comb(total - 1 - rank, n - 1) / math.comb(total, n) for rank in range(total)]
    return sum(chance for chance, index in zip(chances, order, strict=True) if correct[index])


def oracle_accuracy(correct: Sequence[bool], n: int) -> float:
    """Probability that a random subset of n holds a correct candidate."""
    return 1 - math.comb(len(correct) - sum(correct), n) / math.comb(len(correct), n)


def vote_accuracy(answers: Sequence[str | None], correct: Sequence[bool], n: int) -> float:
    """Probability that the most frequent answer of a random subset of n is correct; NaN without answers.

    Over all subsets up to MOST_SUBSETS of them, else over a fixed random choice of so many. Answers with equally many
    votes are taken with equal probability. A candidate without an answer has no vote.
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
