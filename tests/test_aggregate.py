"""From step rewards to one score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_prm.aggregate import AGGREGATES, NON_INCREASING, REASONFLUX_ALPHA, aggregate, check_aggregate
from edge_prm.errors import InputError

REWARDS = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("name", "score"), [("last", 0.25), ("mean", 0.5), ("min", 0.25), ("prod", 0.09375), ("reasonflux", 0.75)]
)
def test_each_aggregate_is_what_its_name_says(name: str, score: float) -> None:
    assert aggregate(name, [0.5, 0.75, 0.25]) == score


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_one_step_is_its_own_score(name: str) -> None:
    assert aggregate(name, [0.3]) == (0.3 + REASONFLUX_ALPHA * 0.3 if name == "reasonflux" else 0.3)


@given(REWARDS)
def test_reasonflux_is_the_mean_and_the_final_reward(rewards: list[float]) -> None:
    expected = sum(rewards) / len(rewards) + rewards[-1]
    assert math.isclose(aggregate("reasonflux", rewards), expected, abs_tol=1e-12)


@given(REWARDS, st.floats(0, 1), st.sampled_from(sorted(NON_INCREASING)))
def test_one_more_step_never_raises_a_non_increasing_aggregate(rewards: list[float], more: float, name: str) -> None:
    assert aggregate(name, [*rewards, more]) <= aggregate(name, rewards)


@pytest.mark.parametrize("name", sorted(set(AGGREGATES) - NON_INCREASING))
def test_the_others_can_rise(name: str) -> None:
    assert aggregate(name, [0.1, 0.9]) > aggregate(name, [0.1])


@pytest.mark.parametrize("name", ["", "max", "MIN", None])
def test_an_unknown_aggregate_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        check_aggregate(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in AGGREGATES)
