"""A session gives the rewards of one shot, and computes no token twice without need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_backend import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from trajectories import PROMPT, STEP, STEPS, repeated, run_threads

from edge_prm.aggregate import aggregate
from edge_prm.encode import Encoder
from edge_prm.errors import BackendError, InputError
from edge_prm.prm import PRM
from edge_prm.trajectory import Step, Trajectory


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


@repeated
@given(prompt=STEP, steps=st.lists(STEP, min_size=3, max_size=8))
def test_ids_of_a_push_are_those_of_the_complete_text(encoder: Encoder, prompt: str, steps: list[str]) -> None:
    known = None
    for count in range(1, len(steps) + 1):
        closed = Trajectory.of(prompt, steps[:count])
        closed = Trajectory(closed.prompt, (*closed.steps[:-1], Step(closed.steps[-1].text, "\n\n")))
        for trajectory in (Trajectory.of(prompt, steps[:count]), closed):
            continued, whole = encoder.encode(trajectory, known), encoder.encode(trajectory)
            assert continued.ids.tolist() == whole.ids.tolist()
            assert (continued.read_at, continued.start) == (whole.read_at, whole.start)
        known = encoder.encode(closed, known)


def test_a_push_tokenizes_its_own_text_and_not_all_before_it(prm: PRM, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    tokens = Encoder._tokens
    monkeypatch.setattr(Encoder, "_tokens", lambda self, text: lengths.append(len(text)) or tokens(self, text))
    with prm.session(PROMPT) as session:
        for index in range(40):
            session.push(f"{index}: {STEPS[0]}")
    assert max(lengths[2:]) < 3 * len(STEPS[0]) + 20
