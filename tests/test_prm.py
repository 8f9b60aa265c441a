"""One shot, many and rank: however a trajectory is asked for, its rewards are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from trajectories import PROMPT, STEP, STEPS, repeated, run_threads, tokens

from edge_prm.aggregate import AGGREGATES, aggregate
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoder
from edge_prm.errors import BackendError, ContextLengthError, InputError
from edge_prm.idle import IDLE_TOKENS
from edge_prm.manifest import Manifest
from edge_prm.prm import PRM
from edge_prm.score import json_line
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
    assert fake.started == []


def test_a_long_text_is_not_kept_for_the_next_call(
    fake: FakeModel, tokenizer_file: Path, manifest_for: Callable[..., Manifest]
) -> None:
    with PRM(Bundle(tokenizer_file.parent, manifest_for(context_length=10 * IDLE_TOKENS)), model=fake) as prm:
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


# what is given, and what comes back


def test_a_score_shows_what_was_scored(prm: PRM, encoder: Encoder) -> None:
    score = prm.score(PROMPT, "<think>\n\na\n\n</think>\n\nb\n\nc", aggregate="mean")
    assert [(step.text, step.kind, step.place) for step in score.steps] == [
        ("<think>\n\na\n\n</think>", "thinking", 0),
        ("b", "response", 1),
        ("c", "response", 2),
    ]
    spans = [step.tokens for step in score.steps]
    assert spans[0][0] < spans[0][1] == spans[1][0] < spans[1][1] == spans[2][0] < spans[2][1] == score.tokens
    ids = encoder.encode(Trajectory.of(PROMPT, "<think>\n\na\n\n</think>\n\nb\n\nc")).ids.tolist()
    assert "b" in encoder._tokenizer.decode(ids[spans[1][0] : spans[1][1]])
    facts = json.loads(json_line(score.as_dict()))
    assert facts["schema"] == 2
    assert facts["aggregate"] == "mean"
    assert facts["rewards"] == [step["reward"] for step in facts["steps"]] == list(score.rewards)
    assert facts["steps"][1] == {"text": "b", "kind": "response", "reward": score.rewards[1], "tokens": list(spans[1]), "place": 1}  # fmt: skip
    assert "cut_at" not in facts


def test_a_session_gives_the_score_of_one_shot(prm: PRM) -> None:
    with prm.session(PROMPT) as session:
        for step in STEPS:
            session.push(step, last=step is STEPS[-1])
        pushed = session.score()
    whole = prm.score(PROMPT, STEPS)
    assert (pushed.steps, pushed.score, pushed.tokens) == (whole.steps, whole.score, whole.tokens)


def test_a_trajectory_is_scored_as_it_is(prm: PRM, expected: Callable) -> None:
    trajectory = Trajectory.of(PROMPT, "a\nb", split="lines")
    assert prm.score(trajectory).rewards == expected(PROMPT, "a\nb", split="lines")
    with pytest.raises(InputError, match="give no others"):
        prm.score(trajectory, STEPS)
    with pytest.raises(InputError, match="steps are missing"):
        prm.score(PROMPT)


@pytest.mark.parametrize(
    "item",
    [
        {"problem": PROMPT, "steps": STEPS},
        {"prompt": "a", "x": 1},
        "ab",
        b"ab",
        ["Q", STEPS, 3],
        ("Q",),
        None,
        7,
        {"a", "b"},
    ],
)
def test_score_many_refuses_what_is_no_trajectory_and_no_pair(prm: PRM, item: object) -> None:
    with pytest.raises(InputError, match=r"item 1 is .*give a Trajectory"):
        list(prm.score_many([(PROMPT, STEPS), item]))  # type: ignore[list-item]


def test_score_many_returns_errors_on_request_and_goes_on(prm: PRM, expected: Callable) -> None:
    items = [(PROMPT, STEPS), ("", STEPS), {"a": 1}, (PROMPT, "word " * 3000), [PROMPT, "a\nb"]]
    found = list(prm.score_many(items, on_error="return", split="lines"))  # type: ignore[arg-type]
    assert [isinstance(one, InputError) for one in found] == [False, True, True, True, False]
    assert isinstance(found[3], ContextLengthError)
    assert found[0].rewards == expected(PROMPT, STEPS)
    assert found[4].rewards == expected(PROMPT, "a\nb", split="lines")
    for options in ({"on_error": "skip"}, {"split": "blanks"}):
        with pytest.raises(InputError):
            prm.score_many(items, **options)  # type: ignore[call-overload]


def test_numpys_strings_arrays_and_numbers_are_taken(prm: PRM, expected: Callable) -> None:
    wanted = expected(PROMPT, STEPS)
    assert prm.score(np.str_(PROMPT), np.array(STEPS)).rewards == wanted  # type: ignore[arg-type]
    assert prm.score(PROMPT, np.array(STEPS, dtype=object)).rewards == wanted  # type: ignore[arg-type]
    assert prm.rank(PROMPT, np.array(["a", "b"])).scores == prm.rank(PROMPT, ["a", "b"]).scores  # type: ignore[arg-type]
    with prm.session(PROMPT) as session:
        session.push("a")
        session.push("b")
        session.trim(np.int64(1))  # type: ignore[arg-type]
        assert session.steps == ("a",)


def test_a_prm_says_what_it_is(prm: PRM) -> None:
    for part in ("tiny", "fp32", "onnx", "sigmoid", "4096"):
        assert part in repr(prm)


def test_json_is_valid_whatever_it_holds() -> None:
    deep: list[object] = []
    for _ in range(2000):
        deep = [deep]
    for value in (
        float("nan"), {"a": [float("inf"), "\ud83d", "\ud83d\ude00", "\udc00x", "\\ud83d"]}, np.float32(0.5), np.arange(3), deep, {1: {2}},
    ):  # fmt: skip
        line = json_line(value)
        assert line.isascii()
        str(json.loads(line)).encode("utf-8")
    assert json.loads(json_line("\ud83d\ude00 \ud83d")) == "😀 \ufffd"
