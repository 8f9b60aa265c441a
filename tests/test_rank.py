"""PRM.rank: candidates of one prompt, what is pruned, and what one that cannot be scored costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from fake_backend import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from trajectories import PROMPT, STEP, STEPS, repeated, tokens

from edge_prm.aggregate import AGGREGATES, aggregate
from edge_prm.encode import Encoder
from edge_prm.errors import BackendError, ContextLengthError, InputError
from edge_prm.prm import PRM
from edge_prm.score import json_line
from edge_prm.trajectory import Trajectory

CANDIDATES = st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=1, max_size=6)


@repeated
@given(prompt=STEP, candidates=CANDIDATES, name=st.sampled_from(sorted(AGGREGATES)))
def test_rank_gives_each_candidate_its_own_score(
    prm: PRM, expected: Callable, prompt: str, candidates: list[list[str]], name: str
) -> None:
    ranking = prm.rank(prompt, candidates, aggregate=name)
    assert ranking.rewards == tuple(expected(prompt, candidate) for candidate in candidates)
    assert ranking.scores == tuple(aggregate(name, rewards) for rewards in ranking.rewards)
    assert ranking.best == ranking.scores.index(max(ranking.scores))
    assert ranking.pruned == ()


@repeated
@given(prompt=STEP, candidates=CANDIDATES, name=st.sampled_from(["min", "prod"]))
def test_early_stop_finds_the_same_best_with_no_more_work(
    prm: PRM, prompt: str, candidates: list[list[str]], name: str
) -> None:
    full = prm.rank(prompt, candidates, aggregate=name)
    quick = prm.rank(prompt, candidates, aggregate=name, early_stop=True)
    assert quick.best == full.best
    for index, (rewards, whole) in enumerate(zip(quick.rewards, full.rewards, strict=True)):
        assert rewards == whole[: len(rewards)]
        assert (len(rewards) < len(whole)) == (index in quick.pruned)
        assert quick.scores[index] >= full.scores[index]
    assert quick.best not in quick.pruned


@repeated
@given(prompt=STEP, candidates=CANDIDATES, threshold=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
def test_threshold_gives_a_candidate_up_at_its_first_step_below(
    prm: PRM, expected: Callable, prompt: str, candidates: list[list[str]], threshold: float
) -> None:
    ranking = prm.rank(prompt, candidates, aggregate="mean", prune_below=threshold)
    survivors = []
    for index, candidate in enumerate(candidates):
        whole = expected(prompt, candidate)
        weak = next((i for i, reward in enumerate(whole) if reward < threshold), None)
        assert (index in ranking.pruned) == (weak is not None)
        assert ranking.rewards[index] == (whole if weak is None else whole[: weak + 1])
        if weak is None:
            survivors.append(index)
    best = max(survivors, key=lambda i: ranking.scores[i], default=None)
    assert ranking.best == best


def test_rank_computes_the_prompt_once(prm: PRM, encoder: Encoder) -> None:
    prompt = "A farmer has 17 sheep and buys 5 more. " * 5
    candidates = [[step, "The answer is 13."] for step in STEPS]
    ranking = prm.rank(prompt, candidates)
    assert ranking.tokens == tuple(tokens(encoder, prompt, candidate) for candidate in candidates)
    own = sum(ranking.tokens) - len(candidates) * tokens(encoder, prompt, ["."])
    assert ranking.computed < tokens(encoder, prompt, ["."]) + own + 3 * len(candidates) + sum(map(len, candidates))


def test_early_stop_and_threshold_save_work(prm: PRM) -> None:
    candidates = [[f"{i} {j} more words than needed" for j in range(6)] for i in range(8)]
    full = prm.rank(PROMPT, candidates, aggregate="min")
    prm.score("another", ["text"])
    quick = prm.rank(PROMPT, candidates, aggregate="min", early_stop=True)
    prm.score("another", ["text"])
    cut = prm.rank(PROMPT, candidates, aggregate="min", prune_below=0.9)
    assert quick.computed < full.computed
    assert cut.computed < full.computed
    assert cut.best is None
    assert cut.pruned == tuple(range(8))


def test_the_first_of_equal_candidates_is_best(prm: PRM) -> None:
    assert prm.rank(PROMPT, [STEPS, STEPS, STEPS], aggregate="min").best == 0
    assert prm.rank(PROMPT, [STEPS, STEPS, STEPS], aggregate="min", early_stop=True).best == 0


def test_candidates_may_be_completions(prm: PRM) -> None:
    ranking = prm.rank(PROMPT, ["a\n\nb", ["a", "b"], "a\nb"], split="lines")
    assert [len(rewards) for rewards in ranking.rewards] == [2, 2, 2]
    assert ranking.rewards[0] == ranking.rewards[1]


@pytest.mark.parametrize("name", sorted(set(AGGREGATES) - {"min", "prod"}))
def test_early_stop_needs_an_aggregate_that_cannot_rise(prm: PRM, name: str) -> None:
    with pytest.raises(InputError, match="early_stop needs aggregate min or prod") as caught:
        prm.rank(PROMPT, [STEPS], aggregate=name, early_stop=True)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
def test_a_threshold_outside_of_the_rewards_is_refused(prm: PRM, threshold: float) -> None:
    with pytest.raises(InputError, match=f"prune_below is {threshold!r}"):
        prm.rank(PROMPT, [STEPS], prune_below=threshold)


@pytest.mark.parametrize("candidates", [[], "a\n\nb", b"a", None, {"a": 1}, (c for c in "ab")])
def test_candidates_that_are_no_list_are_refused(prm: PRM, candidates: object) -> None:
    with pytest.raises(InputError, match="candidates must be a list"):
        prm.rank(PROMPT, candidates)  # type: ignore[arg-type]


def test_a_bad_candidate_has_no_score_and_a_reason_and_the_others_are_ranked(prm: PRM, expected: Callable) -> None:
    other = Trajectory.of("another prompt", "a")
    candidates = [[""], STEPS, "word " * 3000, None, "<think>\n\n</think>", ["a", 3], other, "a\n\nb"]
    ranking = prm.rank(PROMPT, candidates)  # type: ignore[list-item]
    assert [index for index, score in enumerate(ranking.scores) if score is not None] == [1, 7]
    assert ranking.rewards[1] == expected(PROMPT, STEPS)
    assert ranking.best in (1, 7)
    said = {0: "step 0 is empty", 2: "the text is", 3: "missing", 4: "tags only", 5: "step 1 is int", 6: "its prompt"}
    assert set(ranking.errors) == set(said)
    for index, part in said.items():
        assert str(ranking.errors[index]).startswith(f"candidate {index}: ")
        assert part in str(ranking.errors[index])
    long = ranking.errors[2]
    assert isinstance(long, ContextLengthError)
    assert long.tokens > long.context_length
    facts = json.loads(json_line(ranking.as_dict()))
    assert facts["scores"][0] is None
    assert facts["rewards"][0] is None
    assert facts["candidates"][0] is None
    assert [error["candidate"] for error in facts["errors"]] == sorted(said)


def test_a_ranking_without_a_good_candidate_has_no_best(prm: PRM, fake: FakeModel) -> None:
    ranking = prm.rank(PROMPT, ["", [" "]])
    assert (ranking.best, ranking.scores) == (None, (None, None))
    assert fake.computed == 0


def test_an_engine_that_fails_on_a_candidate_costs_this_one_only(prm: PRM, fake: FakeModel) -> None:
    fake.fail_after = 1
    ranking = prm.rank(PROMPT, [["a"], ["b"], ["c"]])
    assert [score is None for score in ranking.scores] == [False, True, False]
    fake.not_a_number = True
    with pytest.raises(BackendError, match="nan"):
        prm.rank(PROMPT, ["x", "y"])
