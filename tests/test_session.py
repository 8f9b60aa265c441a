"""However a trajectory is asked for, its rewards are the same, and no token is computed twice without need."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeModel, reward_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_prm.aggregate import AGGREGATES, aggregate
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import BackendError, ContextLengthError, InputError
from edge_prm.manifest import Manifest
from edge_prm.prm import IDLE_TOKENS, PRM
from edge_prm.session import PrefixScorer
from edge_prm.trajectory import Trajectory

PROMPT = "How many eggs does she sell at the market?"
STEPS = ["Janet has 16 eggs a day.", "She eats 3 of them.", "16 - 3 = 13", "The answer is 13."]
WORDS = st.lists(st.sampled_from(["16 - 3 = 13", "?", "Janet", " ", "\n", ".", "é", "😀", "1"]), min_size=1, max_size=4)
STEP = WORDS.map("".join).filter(lambda text: text.strip() != "")
repeated = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the PRM holds nothing but a cache


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path, manifest_for: Callable[..., Manifest]) -> Encoder:
    return Encoder(tokenizer_file, manifest_for())


@pytest.fixture
def expected(encoder: Encoder) -> Callable[..., tuple[float, ...]]:
    """The rewards of a trajectory, each from its own prefix."""

    def rewards(prompt: str, steps: object, **options: str) -> tuple[float, ...]:
        encoded = encoder.encode(Trajectory.of(prompt, steps, **options))  # type: ignore[arg-type]
        return tuple(float(reward_of(encoded.ids[: at + 1])) for at in encoded.read_at)

    return rewards


def tokens(encoder: Encoder, prompt: str, steps: object) -> int:
    return len(encoder.encode(Trajectory.of(prompt, steps)).ids)  # type: ignore[arg-type]


# PrefixScorer


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


def run_threads(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


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


# Session


@repeated
@given(prompt=STEP, steps=st.lists(STEP, min_size=1, max_size=5))
def test_pushing_step_by_step_gives_what_score_gives(prm: PRM, prompt: str, steps: list[str]) -> None:
    with prm.session(prompt) as session:
        for index, step in enumerate(steps):
            session.push(step, last=index == len(steps) - 1)
        score = prm.score(prompt, steps)
        assert session.rewards == score.rewards
        assert session.steps == tuple(step.text for step in Trajectory.of(prompt, steps).steps)
        assert session.tokens == score.tokens
        assert session.score().rewards == score.rewards
        assert session.score("mean").score == aggregate("mean", score.rewards)


def test_a_step_that_is_not_the_last_is_read_at_its_separator(prm: PRM, expected: Callable) -> None:
    with prm.session(PROMPT) as session:
        rewards = [session.push(step) for step in STEPS]
    assert tuple(rewards[:-1]) == expected(PROMPT, STEPS)[:-1]
    assert rewards[-1] == expected(PROMPT, [*STEPS, "more"])[-2]


@repeated
@given(prompt=STEP, steps=st.lists(STEP, min_size=2, max_size=6))
def test_a_push_computes_its_new_tokens_and_two_more_at_most(prm: PRM, prompt: str, steps: list[str]) -> None:
    with prm.session(prompt) as session:
        for index, step in enumerate(steps):
            tokens, computed = session.tokens, session.computed
            session.push(step, last=index == len(steps) - 1)
            new = session.tokens - tokens
            assert new <= session.computed - computed <= new + 2


def test_the_seam_between_prompt_and_completion_shares_a_token(prm: PRM, encoder: Encoder, expected: Callable) -> None:
    """`market?` + `Janet` has a token of both; a candidate that begins otherwise must not keep it."""
    alone = len(encoder.encode(Trajectory.of(PROMPT, ["."])).ids)
    prm.score(PROMPT, ["Janet has 16 eggs."])
    assert prm.score(PROMPT, ["."]).rewards == expected(PROMPT, ["."])
    assert prm.score(PROMPT, ["Janet has 16 eggs."]).rewards == expected(PROMPT, ["Janet has 16 eggs."])
    with prm.session(PROMPT) as session:
        session.push("Janet has 16 eggs.")
        session.trim(0)
        session.push(".", last=True)
        assert session.rewards == expected(PROMPT, ["."])
        assert session.tokens == alone


def test_trim_goes_back_to_a_step(prm: PRM, expected: Callable) -> None:
    with prm.session(PROMPT) as session:
        for step in STEPS[:3]:
            session.push(step)
        first = session.rewards
        session.trim(1)
        assert session.steps == tuple(STEPS[:1])
        assert session.rewards == first[:1]
        computed = session.computed
        session.push("Something else.")
        session.push(STEPS[3], last=True)
        assert session.rewards == expected(PROMPT, [STEPS[0], "Something else.", STEPS[3]])
        assert session.computed - computed < session.tokens
        session.trim(0)
        assert (session.steps, session.rewards, session.tokens) == ((), (), 0)
        session.push(STEPS[0])
        assert session.rewards == first[:1]


def test_trim_opens_a_session_that_had_its_last_step(prm: PRM, expected: Callable) -> None:
    with prm.session(PROMPT) as session:
        session.push(STEPS[0])
        session.push(STEPS[1], last=True)
        with pytest.raises(InputError, match="last step was pushed already"):
            session.push(STEPS[2])
        assert len(session.rewards) == 2
        session.trim(1)
        session.push(STEPS[2], last=True)
        assert session.rewards == expected(PROMPT, [STEPS[0], STEPS[2]])


@pytest.mark.parametrize("steps", [-1, 3, 1.0, "1", None, True])
def test_trim_beyond_the_steps_is_refused(prm: PRM, steps: object) -> None:
    with prm.session(PROMPT) as session:
        session.push(STEPS[0])
        session.push(STEPS[1])
        with pytest.raises(InputError, match="holds 2") as caught:
            session.trim(steps)  # type: ignore[arg-type]
        assert repr(steps) in str(caught.value)
        assert len(session.steps) == 2


def test_branches_do_not_touch_each_other(prm: PRM, expected: Callable) -> None:
    with prm.session(PROMPT) as session:
        session.push(STEPS[0])
        with session.branch() as left, session.branch() as right:
            left.push("left", last=True)
            right.push("right")
            right.push("further right", last=True)
            session.push("straight on", last=True)
            assert left.rewards == expected(PROMPT, [STEPS[0], "left"])
            assert right.rewards == expected(PROMPT, [STEPS[0], "right", "further right"])
        assert session.rewards == expected(PROMPT, [STEPS[0], "straight on"])
        assert session.steps == (STEPS[0], "straight on")


def test_a_branch_computes_nothing_again(prm: PRM) -> None:
    with prm.session(PROMPT) as session:
        for step in STEPS[:3]:
            session.push(step)
        with session.branch() as branch:
            assert branch.computed == 0
            before = branch.tokens
            branch.push(STEPS[3])
            assert branch.computed <= branch.tokens - before + 2


def test_a_branch_outlives_the_session(prm: PRM, expected: Callable) -> None:
    session = prm.session(PROMPT)
    session.push(STEPS[0])
    branch = session.branch()
    session.close()
    branch.push(STEPS[1], last=True)
    assert branch.rewards == expected(PROMPT, STEPS[:2])
    branch.close()


@pytest.mark.parametrize("fails_at", range(4))
def test_an_engine_that_fails_leaves_the_session_as_it_was(
    prm: PRM, fake: FakeModel, expected: Callable, fails_at: int
) -> None:
    with prm.session(PROMPT) as session:
        for index, step in enumerate(STEPS):
            if index == fails_at:
                before = (session.steps, session.rewards, session.tokens)
                fake.fail_after = 0
                with pytest.raises(BackendError, match="half-way"):
                    session.push(step)
                assert (session.steps, session.rewards, session.tokens) == before
            session.push(step, last=index == len(STEPS) - 1)
        assert session.rewards == expected(PROMPT, STEPS)


def test_bad_steps_leave_the_session_as_it_was(prm: PRM, expected: Callable) -> None:
    with prm.session(PROMPT) as session:
        session.push(STEPS[0])
        for bad, said in (("", "step 1 is empty"), (None, "step 1 is NoneType"), ("word " * 3000, "tokens long")):
            with pytest.raises(InputError, match=said):
                session.push(bad)  # type: ignore[arg-type]
        assert len(session.rewards) == 1
        session.push(STEPS[1], last=True)
        assert session.rewards == expected(PROMPT, STEPS[:2])


def test_a_prompt_that_is_empty_opens_no_session(prm: PRM, fake: FakeModel) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        prm.session(" ")
    assert fake.started == []


def test_a_session_without_steps_has_no_score(prm: PRM) -> None:
    with prm.session(PROMPT) as session, pytest.raises(InputError, match="no step was pushed"):
        session.score()


def test_a_closed_session_can_be_read_and_no_more(prm: PRM) -> None:
    with prm.session(PROMPT) as session:
        reward = session.push(STEPS[0])
    assert session.rewards == (reward,)
    assert session.score().score == reward
    for call in (lambda: session.push("a"), lambda: session.trim(0), session.branch):
        with pytest.raises(InputError, match="closed"):
            call()
    session.close()


def test_threads_may_push_to_one_session(prm: PRM, expected: Callable) -> None:
    with prm.session(PROMPT) as session:
        run_threads(lambda worker: [session.push(f"{worker} {i}") for i in range(5)] and None, 4)
        assert len(session.steps) == 20
        assert session.rewards[:-1] == expected(PROMPT, list(session.steps))[:-1]


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
