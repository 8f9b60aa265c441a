"""One shot, many and rank: however a trajectory is asked for, its rewards are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_backend import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from trajectories import PROMPT, STEP, STEPS, repeated, run_threads, tokens

from edge_prm.aggregate import AGGREGATES, aggregate
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoder
from edge_prm.errors import BackendError, ContextLengthError, InputError
from edge_prm.manifest import Manifest
from edge_prm.prm import IDLE_TOKENS, PRM
from edge_prm.trajectory import Trajectory

# PRM.score


@repeated
@given(prompt=STEP, steps=st.lists(STEP, min_size=1, max_size=5))
def test_score_gives_the_reward_of_every_step(prm: PRM, expected: Callable, prompt: str, steps: list[str]) -> None:
    score = prm.score(prompt, steps)
    assert score.rewards == expected(prompt, steps)
    assert score.score == score.rewards[-1]


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_score_aggregates_as_asked(prm: PRM, name: str) -> None:
    score = prm.score(PROMPT, STEPS, aggregate=name)
    assert score.score == aggregate(name, score.rewards)


def test_score_splits_a_completion_as_asked(prm: PRM, expected: Callable) -> None:
    completion = "a\nb\n\nc; d"
    assert len(prm.score(PROMPT, completion).rewards) == 2
    for split, steps in (("lines", 3), ("; ", 2)):
        rewards = prm.score(PROMPT, completion, split=split).rewards
        assert len(rewards) == steps
        assert rewards == expected(PROMPT, completion, split=split)


def test_score_of_a_list_and_of_its_text_are_the_same(prm: PRM) -> None:
    assert prm.score(PROMPT, STEPS).rewards == prm.score(PROMPT, "\n\n".join(STEPS)).rewards


def test_score_counts_tokens_and_those_computed(prm: PRM, encoder: Encoder) -> None:
    first = prm.score(PROMPT, STEPS)
    assert first.tokens == first.computed == tokens(encoder, PROMPT, STEPS)
    again = prm.score(PROMPT, STEPS)
    assert (again.tokens, again.computed) == (first.tokens, 0)
    longer = prm.score(PROMPT, [*STEPS, "So it is."])
    assert 0 < longer.computed < longer.tokens // 2


def test_a_failure_does_not_poison_the_next_call(prm: PRM, fake: FakeModel, expected: Callable) -> None:
    prm.score(PROMPT, STEPS[:2])
    fake.fail_after = 0
    with pytest.raises(BackendError, match="half-way"):
        prm.score(PROMPT, STEPS)
    assert prm.score(PROMPT, STEPS).rewards == expected(PROMPT, STEPS)


def test_bad_input_is_refused_before_any_model_work(prm: PRM, fake: FakeModel) -> None:
    long = "word " * 3000
    for prompt, steps, options in (
        ("", STEPS, {}),
        (PROMPT, [], {}),
        (PROMPT, STEPS, {"aggregate": "median"}),
        (PROMPT, "a\n\nb", {"split": "("}),
        (PROMPT, [*STEPS, long], {}),
    ):
        with pytest.raises(InputError):
            prm.score(prompt, steps, **options)
    with pytest.raises(ContextLengthError):
        prm.rank(PROMPT, [STEPS, [long]])
    assert fake.started == []


def test_a_long_text_is_not_kept_for_the_next_call(
    fake: FakeModel, tokenizer_file: Path, manifest_for: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_prm.prm.load_model", lambda *_: fake)
    with PRM(Bundle(tokenizer_file.parent, manifest_for(context_length=10 * IDLE_TOKENS))) as prm:
        long = prm.score(PROMPT, ["1 " * IDLE_TOKENS])
        assert long.tokens > IDLE_TOKENS
        assert prm.score(PROMPT, STEPS).computed == prm.score(PROMPT, STEPS).tokens
    assert len(fake.started) == 2


def test_threads_get_the_same_rewards(prm: PRM, expected: Callable) -> None:
    jobs = [(PROMPT, STEPS[: 1 + i % 4]) if i % 3 else (f"{i}?", STEPS[i % 4 :]) for i in range(40)]
    found: dict[int, tuple[float, ...]] = {}

    def work(worker: int) -> None:
        for index in range(worker, len(jobs), 4):
            found[index] = prm.score(*jobs[index]).rewards

    run_threads(work, 4)
    assert found == {index: expected(*job) for index, job in enumerate(jobs)}


def test_closing_closes_the_model(prm: PRM, fake: FakeModel) -> None:
    prm.close()
    assert fake.closed


# score_many


def test_score_many_is_score_for_each(prm: PRM, expected: Callable) -> None:
    items = [(PROMPT, STEPS), (PROMPT, "a\n\nb"), Trajectory.of("Q", "a\nb", split="lines")]
    scores = list(prm.score_many(items, aggregate="min"))
    assert [score.rewards for score in scores[:2]] == [expected(PROMPT, STEPS), expected(PROMPT, "a\n\nb")]
    assert scores[2].rewards == expected("Q", "a\nb", split="lines")
    assert all(score.score == min(score.rewards) for score in scores)


def test_score_many_reads_one_trajectory_at_a_time(prm: PRM, fake: FakeModel) -> None:
    taken: list[int] = []

    def endless() -> Iterator[tuple[str, list[str]]]:
        number = 0
        while True:
            taken.append(number)
            yield f"{number}?", ["a", "b"]
            number += 1

    scores = prm.score_many(endless())
    assert taken == []
    for count in range(1, 4):
        next(scores)
        assert len(taken) == count
    scores.close()
    assert len(fake.started) == 1
    assert fake.started[0].closed


def test_score_many_holds_one_sequence_however_many_there_are(prm: PRM, fake: FakeModel) -> None:
    longest = 0
    for score in prm.score_many((f"{number}?", STEPS) for number in range(50)):
        longest = max(longest, score.tokens)
        assert fake.started[0].offset <= longest
    assert len(fake.started) == 1


def test_score_many_computes_a_shared_prompt_once(prm: PRM, encoder: Encoder) -> None:
    prompt = "A farmer has 17 sheep and buys 5 more. " * 5
    scores = list(prm.score_many((prompt, [step]) for step in STEPS))
    assert scores[0].computed == scores[0].tokens
    assert all(score.computed < score.tokens / 3 for score in scores[1:])


def test_score_many_checks_its_aggregate(prm: PRM) -> None:
    with pytest.raises(InputError, match="median"):
        prm.score_many([(PROMPT, STEPS)], aggregate="median")


# rank


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
    assert ranking.stopped == ()


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
        assert (len(rewards) < len(whole)) == (index in quick.stopped)
        assert quick.scores[index] >= full.scores[index]
    assert quick.best not in quick.stopped


@repeated
@given(prompt=STEP, candidates=CANDIDATES, threshold=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
def test_threshold_gives_a_candidate_up_at_its_first_step_below(
    prm: PRM, expected: Callable, prompt: str, candidates: list[list[str]], threshold: float
) -> None:
    ranking = prm.rank(prompt, candidates, aggregate="mean", threshold=threshold)
    survivors = []
    for index, candidate in enumerate(candidates):
        whole = expected(prompt, candidate)
        weak = next((i for i, reward in enumerate(whole) if reward < threshold), None)
        assert (index in ranking.stopped) == (weak is not None)
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
    cut = prm.rank(PROMPT, candidates, aggregate="min", threshold=0.9)
    assert quick.computed < full.computed
    assert cut.computed < full.computed
    assert cut.best is None
    assert cut.stopped == tuple(range(8))


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
    with pytest.raises(InputError, match=f"threshold is {threshold!r}"):
        prm.rank(PROMPT, [STEPS], threshold=threshold)


@pytest.mark.parametrize("candidates", [[], "a\n\nb", b"a", None, {"a": 1}, (c for c in "ab")])
def test_candidates_that_are_no_list_are_refused(prm: PRM, candidates: object) -> None:
    with pytest.raises(InputError, match="candidates must be a list"):
        prm.rank(PROMPT, candidates)  # type: ignore[arg-type]


def test_a_bad_candidate_is_named_by_its_number(prm: PRM, fake: FakeModel) -> None:
    with pytest.raises(InputError, match="candidate 1: step 0 is empty"):
        prm.rank(PROMPT, [STEPS, [""]])
    with pytest.raises(ContextLengthError, match="candidate 2: the text is") as caught:
        prm.rank(PROMPT, ["a", "b", "word " * 3000])
    assert caught.value.tokens > caught.value.context_length
    assert fake.started == []
