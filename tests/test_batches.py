"""Several texts in one run: the same rewards as one by one, within a limit of tokens, and an error costs only its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeModel, reward_of
from hypothesis import given
from hypothesis import strategies as st

import edge_prm
from edge_prm.batches import WINDOW, plan, windows
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, EdgePRMError, InputError
from edge_prm.prm import PRM

PROMPT = "How many eggs does she sell at the market?"
CANDIDATES = [
    ["16 - 3 = 13", "13 * 2 = 26"],
    ["16 * 2 = 32"],
    ["She eats 3 of 16.", "13 are left.", "13 * 2 = 26 😀"],
    [""],
]
ITEMS = [(f"{PROMPT} {index}", steps) for index, steps in enumerate(CANDIDATES[:3] * 3)]


class FakeBatches:
    """Rewards by the rule of the fake backend; it notes the batches, and may fail on those of several texts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: list[tuple[int, int]] = []
        self.fails = False

    def rewards(self, texts: Sequence[np.ndarray], read_at: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.sizes.append((len(texts), max(map(len, texts))))
        if self.fails:
            raise BackendError("out of memory")
        pairs = zip(texts, read_at, strict=True)
        return [np.array([reward_of(ids[: at + 1]) for at in read], dtype=np.float32) for ids, read in pairs]


@pytest.fixture
def batches(fake: FakeModel) -> FakeBatches:
    fake.batches = FakeBatches(200)
    return fake.batches


@pytest.fixture
def alone(tokenizer_file: Path, manifest_for: Callable[..., Any]) -> Iterator[PRM]:
    """The same PRM, one text at a time."""
    with PRM(Bundle(tokenizer_file.parent, manifest_for()), model=FakeModel()) as opened:
        yield opened


@given(lengths=st.lists(st.integers(1, 50), max_size=30), most=st.integers(1, 200))
def test_a_plan_has_every_text_once_and_keeps_the_limit(lengths: list[int], most: int) -> None:
    planned = plan(lengths, most)
    assert sorted(index for batch in planned for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most for batch in planned)


def test_texts_of_like_length_are_one_batch() -> None:
    assert plan([10, 10, 10, 10], 40) == [[0, 1, 2, 3]]
    assert plan([3, 100, 4], 12) == [[1], [2, 0]]


def test_items_are_read_a_window_at_a_time() -> None:
    read: list[int] = []
    found = windows(read.append(i) or i for i in range(3 * WINDOW))  # type: ignore[func-returns-value]
    assert (len(next(found)), len(read)) == (WINDOW, WINDOW)
    assert [len(window) for window in found] == [WINDOW, WINDOW]


def test_scores_in_batches_are_those_of_single_texts(prm: PRM, batches: FakeBatches, alone: PRM) -> None:
    scores = list(prm.score_many(ITEMS))
    assert [score.rewards for score in scores] == [score.rewards for score in alone.score_many(ITEMS)]
    assert any(texts > 1 for texts, _ in batches.sizes)
    assert all(texts * longest <= 200 for texts, longest in batches.sizes)
    assert [score.computed for score in scores] == [score.tokens for score in scores]


def test_an_item_that_cannot_be_read_costs_only_itself(prm: PRM, batches: FakeBatches, alone: PRM) -> None:
    items = [ITEMS[0], (PROMPT, []), 5, ITEMS[1]]
    scores = list(prm.score_many(items, on_error="return"))  # type: ignore[arg-type]
    assert [isinstance(score, InputError) for score in scores] == [False, True, True, False]
    assert scores[3].rewards == next(alone.score_many([ITEMS[1]])).rewards  # type: ignore[union-attr]
    with pytest.raises(InputError):
        list(prm.score_many(items))  # type: ignore[arg-type]


def test_a_batch_that_fails_is_scored_one_by_one(prm: PRM, batches: FakeBatches, alone: PRM) -> None:
    batches.fails = True
    assert [s.rewards for s in prm.score_many(ITEMS)] == [s.rewards for s in alone.score_many(ITEMS)]


@pytest.mark.usefixtures("batches")
def test_a_text_on_which_the_engine_fails_is_an_error_in_its_place(prm: PRM, fake: FakeModel) -> None:
    fake.batches.fails, fake.fail_after = True, 3
    scores = list(prm.score_many(ITEMS[:6], on_error="return"))
    failed = [score for score in scores if isinstance(score, EdgePRMError)]
    assert (len(failed), len(scores)) == (1, 6)
    assert isinstance(failed[0], BackendError)


def test_candidates_are_ranked_in_batches_as_one_after_the_other(prm: PRM, batches: FakeBatches, alone: PRM) -> None:
    ours, theirs = prm.rank(PROMPT, CANDIDATES), alone.rank(PROMPT, CANDIDATES)
    assert batches.sizes
    assert (ours.best, ours.scores, [*ours.errors]) == (theirs.best, theirs.scores, [*theirs.errors])


def test_candidates_that_may_be_pruned_are_read_step_by_step(prm: PRM, batches: FakeBatches, alone: PRM) -> None:
    assert (
        prm.rank(PROMPT, CANDIDATES, prune_below=0.5).pruned == alone.rank(PROMPT, CANDIDATES, prune_below=0.5).pruned
    )
    assert not batches.sizes


def test_a_long_shared_prompt_is_computed_once(prm: PRM, batches: FakeBatches) -> None:
    prm.rank(PROMPT * 30, [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]])
    assert not batches.sizes


@pytest.mark.parametrize("recipe", ["fp16", "w4a16"])
def test_a_bundle_for_gpus_gives_the_same_bits_in_batches_on_a_cpu(bundle_of: Callable[..., Path], recipe: str) -> None:
    folder = bundle_of("sigmoid", recipe)
    with edge_prm.load(folder, batch_tokens=150, threads=1) as batched, edge_prm.load(folder, threads=1) as single:
        assert single.model.batches is None
        ours = [score.rewards for score in batched.score_many(ITEMS)]
        assert ours == [single.score(*item).rewards for item in ITEMS]
        ranking = batched.rank(PROMPT, CANDIDATES[:3])
        assert ranking.scores == single.rank(PROMPT, CANDIDATES[:3]).scores


def test_a_bundle_that_runs_one_text_at_a_time_refuses_batches(bundle_of: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="one text at a time; leave batch_tokens out"):
        edge_prm.load(bundle_of("sigmoid", "int8"), batch_tokens=100)
    with pytest.raises(InputError, match="batch_tokens is -1; give a whole number"):
        edge_prm.load(bundle_of("sigmoid", "fp16"), batch_tokens=-1)
