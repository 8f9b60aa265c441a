"""A prefix scorer computes what follows the common prefix, and nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
from fake_backend import FakeModel, reward_of
from hypothesis import given
from hypothesis import strategies as st

from edge_prm.encode import Encoded
from edge_prm.errors import BackendError
from edge_prm.judges.discriminative import PrefixScorer

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(st.lists(st.tuples(IDS, st.sets(st.integers(0, 11))), min_size=1, max_size=8))
def test_rewards_are_right_after_any_texts_before(texts: list[tuple[list[int], set[int]]]) -> None:
    model = FakeModel()
    scorer = PrefixScorer(model.start())
    for ids, positions in texts:
        read_at = tuple(sorted(at for at in positions if at < len(ids))) or (len(ids) - 1,)
        encoded = Encoded(np.array(ids, dtype=np.int64), read_at)
        before = scorer.computed
        assert scorer.rewards(encoded) == [float(reward_of(encoded.ids[: at + 1])) for at in read_at]
        assert scorer.computed - before <= len(ids) + 1
        assert scorer.tokens <= len(ids) or scorer.computed == before


@given(st.lists(IDS, min_size=1, max_size=5))
def test_rewards_one_by_one_are_the_rewards_at_once(texts: list[list[int]]) -> None:
    scorer = PrefixScorer(FakeModel().start())
    for ids in texts:
        encoded = Encoded(np.array(ids, dtype=np.int64), tuple(range(0, len(ids), 2)))
        assert list(scorer.rewards_one_by_one(encoded)) == PrefixScorer(FakeModel().start()).rewards(encoded)


def test_what_is_known_is_not_computed_again(fake: FakeModel) -> None:
    scorer = PrefixScorer(fake.start())
    encoded = Encoded(np.arange(20), (4, 9, 19))
    scorer.rewards(encoded)
    assert scorer.computed == 20
    scorer.rewards(encoded)
    scorer.rewards(Encoded(np.arange(10), (4, 9)))
    assert scorer.computed == 20


def test_nothing_behind_the_last_read_position_is_computed(fake: FakeModel) -> None:
    scorer = PrefixScorer(fake.start())
    scorer.rewards(Encoded(np.arange(20), (3,)))
    assert scorer.computed == 4


def test_a_reward_that_is_no_number_is_an_error(fake: FakeModel) -> None:
    scorer = PrefixScorer(fake.start())
    encoded = Encoded(np.arange(5), (4,))
    fake.not_a_number = True
    with pytest.raises(BackendError, match=r"reward at token 4 is nan.*edge-prm check"):
        scorer.rewards(encoded)
    fake.not_a_number = False
    assert scorer.rewards(encoded) == [float(reward_of(encoded.ids))]


@given(IDS, IDS, st.integers(0, 3))
def test_a_failure_half_way_leaves_the_scorer_right(left: list[int], right: list[int], fail_after: int) -> None:
    model = FakeModel()
    scorer = PrefixScorer(model.start())
    texts = [Encoded(np.array(ids, dtype=np.int64), (len(ids) - 1,)) for ids in (left, right, left + right, right)]
    model.fail_after = fail_after
    for text in texts:
        try:
            rewards = scorer.rewards(text)
        except BackendError:
            rewards = scorer.rewards(text)
        assert rewards == [float(reward_of(text.ids))]
