"""Every statistic against an independent implementation, or against values computed by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_prm_bench.statistics import best_of_n, metrics, steps

stats = pytest.importorskip("scipy.stats", reason="the judge of the statistics is scipy: pip install scipy")
sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn: pip install scikit-learn")

TIED = st.integers(0, 4).map(lambda value: value / 4)  # few values, so that ties are the rule
VALUES = st.lists(st.tuples(TIED, TIED), min_size=2, max_size=30)


def same(ours: float, theirs: float) -> bool:
    return (math.isnan(ours) and math.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-12)


@given(VALUES)
def test_spearman_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    left, right = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input, and gives NaN as we do
        assert same(metrics.spearman(left, right), stats.spearmanr(left, right).statistic)


@given(VALUES)
def test_kendall_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    left, right = zip(*pairs, strict=True)
    assert same(metrics.kendall(left, right), stats.kendalltau(left, right).statistic)


@given(st.lists(st.tuples(TIED, st.booleans()), min_size=2, max_size=30))
def test_auc_is_that_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = zip(*pairs, strict=True)
    assume(len(set(labels)) == 2)
    assert same(metrics.auc(scores, labels), sklearn_metrics.roc_auc_score(labels, scores))


def test_auc_needs_both_kinds() -> None:
    assert math.isnan(metrics.auc([0.5, 0.6], [True, True]))
    assert math.isnan(metrics.auc([], []))


@given(st.lists(TIED, min_size=1, max_size=20))
def test_ranks_are_those_of_scipy(values: list[float]) -> None:
    assert metrics.ranks(values).tolist() == stats.rankdata(values).tolist()


def test_statistics_of_nothing_and_of_one_are_not_numbers() -> None:
    for nothing in (metrics.mean([]), metrics.quantile([], 0.99), metrics.maximum([]), metrics.flip_rate([], [], 0.5)):
        assert math.isnan(nothing)
    for values in ([], [0.5]):
        assert math.isnan(metrics.spearman(values, values))
        assert math.isnan(metrics.kendall(values, values))


def test_constant_scores_have_no_rank_correlation() -> None:
    assert math.isnan(metrics.spearman([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]))
    assert math.isnan(metrics.kendall([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]))


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values against 1"):
        metrics.spearman([1, 2], [1])


def test_flip_rate_by_hand() -> None:
    assert metrics.flip_rate([0.5, 0.4, 0.9, 0.1], [0.4, 0.4, 0.5, 0.6], 0.5) == 0.5  # at the threshold is above it


def test_first_weak_by_hand() -> None:
    assert metrics.first_weak([0.9, 0.4, 0.1], 0.5) == 1
    assert metrics.first_weak([0.9, 0.5], 0.5) == -1
    assert metrics.first_weak([], 0.5) == -1


def test_best_of_takes_the_first_of_equals() -> None:
    assert metrics.best_of([0.1, 0.9, 0.9]) == 1


def test_order_agreement_by_hand() -> None:
    # Pairs of different values on the right: (0,1), (0,2); the left side agrees on the first, ties the second.
    assert metrics.order_agreement([0.5, 0.2, 0.5], [0.9, 0.1, 0.1]) == (1, 2)
    assert metrics.order_agreement([0.5], [0.5]) == (0, 0)


def test_the_bootstrap_draws_whole_groups() -> None:
    groups = [[0.0] * 10, [1.0] * 10]
    estimate = metrics.bootstrap(groups, lambda sample: metrics.mean([v for group in sample for v in group]))
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.0, 1.0)  # a quarter of the samples are all of one group


def test_the_bootstrap_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(3).normal(size=200).tolist()
    ours = metrics.bootstrap(values, metrics.mean, 4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_one_group_has_no_interval_and_the_same_seed_gives_the_same() -> None:
    assert math.isnan(metrics.bootstrap([1.0], metrics.mean).low)
    assert metrics.bootstrap([1.0, 2.0, 4.0], metrics.mean) == metrics.bootstrap([1.0, 2.0, 4.0], metrics.mean)


def test_a_statistic_that_is_seldom_defined_has_no_interval() -> None:
    estimate = metrics.bootstrap([1, 2, 3], lambda sample: float("nan") if len(set(sample)) < 3 else 1.0)
    assert estimate.value == 1.0
    assert math.isnan(estimate.low)


# quality


def test_f1_by_hand() -> None:
    """ProcessBench: the first wrong step is found in two of three, and one of two correct ones is accepted."""
    rows = [
        ([0.9, 0.2], 1),
        ([0.1, 0.9], 0),
        ([0.9, 0.9], 0),  # missed
        ([0.9, 0.8], -1),
        ([0.9, 0.4], -1),  # a false alarm
    ]
    accuracies = (2 / 3, 1 / 2)
    assert steps.f1_of(rows, 0.5) == pytest.approx(stats.hmean(accuracies))


def test_f1_of_a_judge_that_is_never_right_is_zero_and_of_one_kind_is_no_number() -> None:
    assert steps.f1_of([([0.9], 0), ([0.1], -1)], 0.5) == 0
    assert math.isnan(steps.f1_of([([0.9], -1)], 0.5))
    assert math.isnan(steps.f1_of([], 0.5))


CANDIDATES = st.lists(st.tuples(TIED, st.booleans()), min_size=1, max_size=6)


@given(CANDIDATES, st.integers(1, 6))
def test_best_of_n_is_that_of_all_subsets(candidates: list[tuple[float, bool]], n: int) -> None:
    assume(n <= len(candidates))
    scores, correct = zip(*candidates, strict=True)
    subsets = list(combinations(range(len(candidates)), n))
    chosen = [correct[max(subset, key=lambda i: (scores[i], -i))] for subset in subsets]
    assert best_of_n.chosen_accuracy(scores, correct, n) == pytest.approx(np.mean(chosen))
    oracle = [any(correct[i] for i in subset) for subset in subsets]
    assert best_of_n.oracle_accuracy(correct, n) == pytest.approx(np.mean(oracle))


@pytest.mark.parametrize(
    ("answers", "correct", "n", "expected"),
    [
        (["4", "4", "5"], [True, True, False], 3, 1.0),
        (["4", "5"], [True, False], 2, 0.5),  # equals share the vote
        (["4", "5", "5"], [True, False, False], 3, 0.0),
        (["4", "4", "5", "5"], [True, True, False, False], 2, 0.5),  # 1 + 0 + four ties of six pairs
        ([None, "4"], [False, True], 2, 1.0),  # no answer, no vote
        (["4"], [True], 1, 1.0),
    ],
)
def test_majority_vote_by_hand(answers: Sequence[str | None], correct: Sequence[bool], n: int, expected: float) -> None:
    assert best_of_n.vote_accuracy(answers, correct, n) == pytest.approx(expected)


def test_majority_vote_without_answers_is_no_number() -> None:
    assert math.isnan(best_of_n.vote_accuracy([None, None], [True, False], 2))


def test_majority_vote_of_many_candidates_is_sampled_and_close() -> None:
    answers = ["right"] * 12 + ["wrong"] * 8
    correct = [answer == "right" for answer in answers]
    exact = sum(stats.hypergeom(20, 12, 9).pmf(k) for k in range(5, 10))
    assert best_of_n.vote_accuracy(answers, correct, 9) == pytest.approx(exact, abs=0.05)
