"""Rows of every usual format are read as what they mean; what cannot be read is named, and costs only itself."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_rows import ANSWER, STEPS, THINK, Q, assistant, kinds, read, reason, record, texts, user

from edge_prm.errors import InputError, MissingExtraError
from edge_prm.prm import PRM
from edge_prm.records import BadRow, Fields, Record, read_records
from edge_prm.score import json_line
from edge_prm.split import ANSWER_TAGS, THINKING_TAGS

# formats with one answer


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"problem": Q, "steps": STEPS}, "steps"),
        ({"prompt": Q, "completion": ANSWER}, "completion"),
        ({"question": Q, "response": ANSWER}, "completion"),
        ({"instruction": Q, "output": ANSWER}, "completion"),
        ({"query": Q, "generated_text": ANSWER}, "completion"),
        ({"problem": Q, "solution": ANSWER}, "completion"),
        ({"problem": Q, "steps": STEPS, "label": -1, "final_answer_correct": True}, "ProcessBench"),
        ({"prompt": Q, "completions": STEPS, "labels": [True, True]}, "stepwise"),
        ({"problem": Q, "steps": STEPS, "labels": [1, 0]}, "stepwise"),
        ({"modified_question": Q, "modified_process": STEPS, "error_steps": [2], "question": "other"}, "PRMBench"),
        ({"messages": [user(), assistant()]}, "messages"),
        ({"messages": [user([{"type": "text", "text": Q}]), assistant([{"type": "text", "text": ANSWER}])]}, "messages"),
        ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": ANSWER}]}, "conversations"),
        ({"doc": {"question": Q}, "resps": [[ANSWER]], "filtered_resps": ["14"]}, "lm-eval"),
        ({"prompt": Q, "choices": [{"message": assistant()}]}, "choices"),
        ({"prompt": Q, "choices": [{"text": ANSWER, "index": 0}]}, "choices"),
        ({"messages": [user()], "response": {"body": {"choices": [{"message": assistant()}]}}}, "choices"),
        ({"prompt": [user()], "completion": ANSWER}, "completion"),
        ({"request_id": "0", "prompt": Q, "outputs": [{"index": 0, "text": ANSWER}], "finished": True}, "candidates"),
        ({"problem": Q, "steps": None, "completion": ANSWER, "label": None}, "completion"),
        ({"problem": Q, "completion": None, "response": ANSWER}, "completion"),
        ({"problem": None, "prompt": Q, "candidates": None, "steps": STEPS}, "steps"),
    ],
)  # fmt: skip
def test_one_answer_is_found_by_the_keys_of_its_row(row: dict[str, Any], form: str) -> None:
    found = record(row)
    assert (found.format, found.prompt, found.several) == (form, Q, False)
    assert texts(found.candidates[0]) == STEPS


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "solution": "no", "thinking_trajectories": ["a\n\nb"], "attempt": "c"},
        {"question": Q, "solution": "no", "deepseek_thinking_trajectory": "a\n\nb", "deepseek_attempt": "c"},
        {"problem": Q, "deepseek_reasoning": "a\n\nb", "deepseek_solution": "c", "ground_truth_solution": "no"},
        {"prompt": Q, "reasoning_content": "a\n\nb", "content": "c"},
        {"prompt": Q, "reasoning": "a\n\nb", "content": "c"},
        {"problem": Q, "response": "c", "reasoning": "a\n\nb"},
        {"messages": [user(), assistant("c", reasoning_content="a\n\nb")]},
        {"prompt": Q, "choices": [{"message": assistant("c", reasoning="a\n\nb")}]},
    ],
)
def test_thinking_in_a_field_of_its_own_comes_first(row: dict[str, Any]) -> None:
    (candidate,) = record(row).candidates
    assert texts(candidate) == ["a", "b", "c"]
    assert kinds(candidate) == "ttr"
    assert candidate.trajectory(Q, "auto", None).completion == "a\n\nb\n\nc"


@pytest.mark.parametrize("row", [{"prompt": Q, "reasoning": "a\n\nb", "content": ""}, {"messages": [user(), assistant(None, reasoning="a\n\nb")]}])  # fmt: skip
def test_thinking_that_was_cut_off_is_scored_as_thinking(row: dict[str, Any]) -> None:
    (candidate,) = record(row).candidates
    assert (texts(candidate), kinds(candidate)) == (["a", "b"], "tt")


@pytest.mark.parametrize(("opening", "closing"), THINKING_TAGS)
def test_thinking_inside_of_the_text_is_known_by_its_tags(opening: str, closing: str) -> None:
    value = f"{opening}\n\na\n\n{closing}\n\n{ANSWER_TAGS[1][0]}\n\nb\n\n{ANSWER_TAGS[1][1]}"
    row = {"system": "think", "conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": value}]}
    found = record(row)
    assert found.notes == ("the system message",)
    assert kinds(found.candidates[0]) == "tr"


# several answers


@pytest.mark.parametrize(
    "row",
    [
        {"problem": Q, "candidates": [ANSWER, STEPS]},
        {"problem": Q, "candidates": [{"text": ANSWER}, {"steps": STEPS}]},
        {"problem": Q, "candidates": [{"completion": ANSWER, "logprob": -1}, {"response": ANSWER}]},
        {"problem": Q, "solution": "the reference", "generations": [ANSWER, ANSWER], "messages": [user(), assistant("no")]},
        {"problem": Q, "completions": [ANSWER, ANSWER], "scores": [[0.1], [0.2]], "pred": "14"},
        {"question": Q, "responses": [ANSWER, ANSWER]},
        {"prompt": Q, "samples": [ANSWER, ANSWER]},
        {"prompt": Q, "outputs": [{"index": 0, "text": ANSWER}, {"index": 1, "text": ANSWER}]},
        {"prompt": Q, "choices": [{"message": assistant()}, {"message": assistant()}]},
        {"doc": {"problem": Q}, "resps": [[ANSWER, ANSWER]]},
        {"prompt": [user()], "completions": [[assistant()], [assistant()]]},
    ],
)  # fmt: skip
def test_several_answers_are_candidates(row: dict[str, Any]) -> None:
    found = record(row)
    assert (found.prompt, found.several) == (Q, True)
    assert [texts(candidate) for candidate in found.candidates] == [STEPS, STEPS]


def test_two_generators_of_s1k_are_candidates() -> None:
    row = {"question": Q, "deepseek_thinking_trajectory": "a", "deepseek_attempt": "b", "gemini_thinking_trajectory": "c", "gemini_attempt": "d"}  # fmt: skip
    assert [texts(candidate) for candidate in record(row).candidates] == [["a", "b"], ["c", "d"]]


def test_candidates_know_which_are_right() -> None:
    row = {"problem": Q, "generations": ["a", "b", "c"], "correctness_math_verify": [True, False, None]}
    assert [candidate.correct for candidate in record(row).candidates] == [True, False, None]
    listed = {"problem": Q, "candidates": [{"text": "a", "correct": 1.0, "answer": 4}, {"text": "b", "correct": "no"}]}
    first, second = record(listed).candidates
    assert (first.correct, first.answer, second.correct) == (True, "4", None)
    assert "correct is 'no'" in second.labels.missing


def test_fields_next_to_candidates_are_left_out_and_named() -> None:
    row = {"problem": Q, "candidates": ["a"], "completion": "b", "responses": ["c"]}
    assert record(row).notes == ("responses: the answers are candidates", "completion: the answers are candidates")


# what cannot be meant


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": Q, "solution": "the reference", "generations": None}, "generations is null, and solution"),
        ({"problem": Q, "solution": "the reference", "completion": None}, "completion is null, and solution"),
        ({"problem": Q, "solution": "the reference", "generations": []}, "generations are missing, empty"),
        ({"messages": [user(), assistant(), user(), assistant()]}, "--completion-field messages.3.content"),
        ({"messages": [assistant(), user()]}, "not one answer to one question"),
        ({"messages": [user()]}, "0 assistant and 1 user"),
        ({"messages": [user(), assistant(None, tool_calls=[{}])]}, "call of a tool"),
        ({"messages": [user(), assistant([{"type": "image_url"}])]}, "a part that is no text"),
        ({"messages": []}, "messages are empty"),
        ({"messages": "a"}, "messages are str"),
        ({"conversations": [{"from": "human", "value": Q}]}, "--completion-field conversations.0.value"),
        ({"doc": {"problem": Q}, "resps": [["a"], ["b"]]}, "--completion-field resps.0.0"),
        ({"question": Q, "thinking_trajectories": ["a", "b"]}, "--completion-field thinking_trajectories.0"),
        ({"problem": Q, "completion": {"role": "assistant", "content": "a"}}, "--completion-field completion.content"),
        ({"problem": 12, "steps": STEPS}, "problem is int"),
        ({"problem": Q, "steps": "a"}, "steps are str"),
        ({"problem": Q, "steps": ["a", 3.5]}, "item 1 is float"),
        ({"problem": Q, "steps": [["a"]]}, "item 0 is list"),
        ({"steps": STEPS}, "no problem or prompt or question; its fields are steps"),
        ({"input": "Q ки", "label": "Q +", "task": "GSM8K"}, "no `Step 1:`"),
        ({"question": {"problem": "P"}, "label": {"steps": None}}, "steps of label are NoneType"),
        ({"question": {"problem": "P"}, "label": {"steps": [{"completions": [{}], "chosen_completion": 9}]}}, "not a row of PRM800K"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_a_remedy(row: dict[str, Any], said: str) -> None:
    assert said in reason(row)


def test_fields_may_be_named() -> None:
    row = {"q": Q, "a": ANSWER, "parts": STEPS, "many": [ANSWER, "b"], "key": "x", "id": 1, "completion": "no", "in": {"a": [ANSWER]}}  # fmt: skip
    assert texts(record(row, prompt="q", completion="a").candidates[0]) == STEPS
    assert texts(record(row, prompt="q", completion="in.a.0").candidates[0]) == STEPS
    assert texts(record(row, prompt="q", completion="in.a.-1").candidates[0]) == STEPS
    assert texts(record(row, prompt="q", steps="parts").candidates[0]) == STEPS
    named = record(row, prompt="q", candidates="many", id="key")
    assert (len(named.candidates), named.several, named.id) == (2, True, "x")
    assert texts(record({"q": Q, "messages": [user("no"), assistant()]}, prompt="q").candidates[0]) == STEPS
    assert "no field 'in.b'" in reason(row, prompt="q", completion="in.b")
    assert "is null" in reason({**row, "in": {"a": None}}, prompt="q", completion="in.a")
    with pytest.raises(InputError, match="exclude each other"):
        Fields(steps="a", completion="b")


@pytest.mark.parametrize(
    ("fields", "id_"),
    [({"id": "a"}, "a"), ({"id": float("nan")}, 1), ({"id": float("inf")}, 1), ({}, 1), ({"id": None, "uuid": "u"}, "u"), ({"id": 0}, 0)],
)  # fmt: skip
def test_a_row_has_an_id_that_json_can_hold(fields: dict[str, Any], id_: Any) -> None:
    assert record({"problem": Q, "steps": STEPS, "score": float("nan"), **fields}).id == id_


# anything at all


TEXT = st.one_of(
    st.sampled_from([
        "", " ", "\n\n", Q, ANSWER, THINK, "<think>", "</think>", "<think></think>", "<|begin_of_thought|>", "<extra_0>", "a<extra_0>b<extra_0>",
        "ки", "a ки\nb ки", "\ud83d", "a\udc00b", "\0", "\u2028", "\ufeff", "True", "[1]", "{}", "\x1b[2J", "a" * 5000, "x\r\n\r\ny", "<|im_end|>",
    ]),
    st.text(max_size=20),
)  # fmt: skip
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["role", "content", "from", "value", "text", "steps", "completions", "rating", "message", "problem", "correct", "chosen_completion", "human_completion"]
    ), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
KEYS = st.sampled_from([
    "id", "problem", "prompt", "question", "steps", "completion", "response", "solution", "candidates", "generations", "completions", "labels", "label",
    "messages", "conversations", "modified_process", "error_steps", "input", "task", "doc", "resps", "thinking_trajectories", "attempt", "choices",
    "reasoning", "content", "deepseek_thinking_trajectory", "final_answer_correct", "outputs", "idx", "classification", "correctness", "é", "",
])  # fmt: skip
GOOD = st.builds(
    lambda prompt, key, value: {prompt: Q, key: value}, st.sampled_from(["problem", "prompt"]), KEYS, VALUE
)
ROW = st.one_of(st.dictionaries(KEYS, VALUE, max_size=6), GOOD)
LINE = st.one_of(
    st.tuples(ROW, st.booleans()).map(lambda pair: json.dumps(pair[0], ensure_ascii=pair[1]).encode("utf-8", "surrogatepass")),
    st.binary(max_size=30).filter(lambda data: not set(data) & set(b"\r\n") and data.strip(b"\xef\xbb\xbf").strip()),
    VALUE.map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@settings(max_examples=100)
@given(lines=st.lists(LINE, min_size=100, max_size=100), ending=st.sampled_from([b"\n", b"\r\n"]))
def test_no_row_is_lost_without_a_word_and_output_is_always_json(lines: list[bytes], ending: bytes) -> None:
    """100 files of 100 rows: every row is a record or a reason, and every record has a trajectory or a reason."""
    first = json.dumps({"problem": Q, "steps": STEPS}).encode()
    found = list(read_records(io.BytesIO(ending.join([first, *lines]))))
    assert len(found) == 1 + len(lines)
    for one in found:
        if isinstance(one, BadRow):
            assert one.reason
            json.loads(json_line({"id": one.id, "reason": one.reason}))
            continue
        assert one.candidates
        for candidate in one.candidates:
            try:
                trajectory = candidate.trajectory(one.prompt, "auto", "<extra_0>")
            except InputError:
                continue
            steps = [(step.text, step.kind, step.place) for step in trajectory.steps]
            line = json_line({"id": one.id, "notes": one.notes, "steps": steps})
            assert line.isascii()
            str(json.loads(line)).encode()


@settings(max_examples=15)
@given(rows=st.lists(ROW, min_size=1, max_size=30))
def test_a_list_has_the_records_of_its_lines(rows: list[dict[str, Any]]) -> None:
    dumped = [json.dumps(row).encode() for row in rows]
    as_list = list(read_records(io.BytesIO(b"[" + b", ".join(dumped) + b"]")))
    as_lines = list(read_records(io.BytesIO(b"\n".join(dumped))))
    assert [str(one).replace("row ", "line ") for one in as_list] == [str(one) for one in as_lines]


@settings(max_examples=20)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_records_reasons_or_one_sentence(data: bytes) -> None:
    with contextlib.suppress(InputError, MissingExtraError):
        for one in read_records(io.BytesIO(data)):
            assert isinstance(one, (Record, BadRow))


def test_hostile_rows_are_scored_or_refused(prm: PRM) -> None:
    """Scored by a PRM too: nothing but InputError comes back for a bad one."""
    rows: list[Any] = [
        {"problem": Q, "completion": text}
        for text in ("a<extra_0>b", THINK, "\0", "a\u2028b", "x" * 9000, "<|im_end|>")
    ]
    for one in read(*rows):
        assert isinstance(one, Record)
        (score,) = prm.score_many([one.candidates[0].trajectory(Q, "auto", None)], on_error="return")
        assert isinstance(score, InputError) or json.loads(json_line(score.as_dict()))["rewards"]
