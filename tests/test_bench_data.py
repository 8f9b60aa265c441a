"""Rows of the usual benchmarks are read as what they mean, and a row that cannot be read is named by its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_prm.errors import InputError
from edge_prm_bench.data import last_number, read_data

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(*rows: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return to_file


PROCESS_BENCH = {"id": "a", "problem": "P", "steps": ["one", "two", "three"], "label": 1, "final_answer_correct": False}
CANDIDATES = {
    "id": "p",
    "problem": "P",
    "candidates": [{"text": "1 + 1 = 2\nA: 2", "correct": True}, {"text": "A: 3", "correct": False, "answer": "three"}],
}


def test_processbench_labels_the_first_wrong_step(write: Write) -> None:
    wrong, right = read_data(write(PROCESS_BENCH, {**PROCESS_BENCH, "id": "b", "label": -1})).traces
    assert (wrong.id, wrong.first_wrong, wrong.right, wrong.correct) == ("a", 1, (True, False, False), False)
    assert (right.first_wrong, right.right) == (-1, (True, True, True))
    assert wrong.texts == ("one", "two", "three")


def test_candidates_become_traces_of_one_problem(write: Write) -> None:
    data = read_data(write(CANDIDATES))
    assert [trace.id for trace in data.traces] == ["p/0", "p/1"]
    assert data.by_problem() == [[0, 1]]
    assert [trace.correct for trace in data.traces] == [True, False]
    assert [trace.answer for trace in data.traces] == ["2", "three"]
    assert data.traces[0].texts == ("1 + 1 = 2\nA: 2",)
    assert data.one_step == 1
    assert read_data(write(CANDIDATES), split="lines").traces[0].texts == ("1 + 1 = 2", "A: 2")


def test_blank_lines_split_where_there_are_any(write: Write) -> None:
    row = {"problem": "P", "completion": "one\nstill one\n\ntwo"}
    assert read_data(write(row)).traces[0].texts == ("one\nstill one", "two")
    assert read_data(write(row), split="lines").traces[0].texts == ("one", "still one", "two")


def test_prm800k_follows_the_chosen_path(write: Write) -> None:
    def step(*ratings: int | None, chosen: int | None = 0, human: dict[str, Any] | None = None) -> dict[str, Any]:
        completions = [{"text": f"step rated {rating}", "rating": rating} for rating in ratings]
        return {"completions": completions, "chosen_completion": chosen, "human_completion": human}

    row = {
        "question": {"problem": "P"},
        "label": {"steps": [step(1), step(-1, 0, chosen=1), step(None, chosen=None, human={"text": "by hand", "rating": 1}),
                            step(-1, 1, chosen=None)]},
    }  # fmt: skip
    trace = read_data(write(row)).traces[0]
    assert trace.texts == ("step rated 1", "step rated 0", "by hand", "step rated -1")
    assert trace.right == (True, True, True, False)
    assert trace.first_wrong == 3


def test_prm800k_without_ratings_has_no_label(write: Write) -> None:
    steps = [{"completions": [{"text": "one", "rating": None}], "chosen_completion": 0, "human_completion": None}]
    trace = read_data(write({"question": {"problem": "P"}, "label": {"steps": steps}})).traces[0]
    assert (trace.right, trace.first_wrong) == ((None,), None)


def test_prmbench_counts_steps_from_one(write: Write) -> None:
    row = {"idx": "circular_1", "original_question": "P", "modified_question": "Q", "modified_process": ["a", "b", "c"], "error_steps": [2, 3]}  # fmt: skip
    trace = read_data(write(row)).traces[0]
    assert (trace.id, trace.trajectory.prompt, trace.first_wrong) == ("circular_1", "Q", 1)
    assert trace.right == (True, False, False)


def test_a_json_list_is_read_too(write: Write) -> None:
    assert len(read_data(write([PROCESS_BENCH], name="data.json")).traces) == 1


def test_the_hash_is_of_what_is_scored(write: Write) -> None:
    original = read_data(write(PROCESS_BENCH, name="a"))
    other = read_data(write({**PROCESS_BENCH, "generator": "x"}, name="b"))
    assert original.sha256 == other.sha256
    changed = {**PROCESS_BENCH, "steps": ["one", "two", "three."]}
    assert read_data(write(changed, name="c")).sha256 != original.sha256
    assert read_data(write(PROCESS_BENCH, {**PROCESS_BENCH, "id": 2}, name="d"), limit=1).sha256 == original.sha256


@pytest.mark.parametrize(
    ("row", "place", "said"),
    [
        ("{", "line 2", "not valid JSON"),
        ("[]", "line 2", "holds list"),
        ({"problem": "P"}, "line 2", "its fields are problem"),
        ({**PROCESS_BENCH, "id": 2, "steps": []}, "line 2", "steps are an empty list"),
        ({"problem": "P", "candidates": [{}, "b"]}, "line 2, candidate 0", "it has no text"),
        ({"question": {"problem": "P"}, "label": {}}, "line 2", "steps of label"),
        ({"question": {"problem": "P"}, "label": {"steps": [3]}}, "line 2", "not a row of PRM800K"),
    ],
)
def test_a_row_that_cannot_be_read_is_skipped(write: Write, row: Any, place: str, said: str) -> None:
    data = read_data(write(PROCESS_BENCH, row, {**PROCESS_BENCH, "id": "c"}))
    assert {"a", "c"} <= {trace.id for trace in data.traces}
    (skipped,) = data.skipped
    assert skipped.place == place
    assert said in skipped.reason
    with pytest.raises(InputError, match=r"data\.jsonl: none of 1 rows can be read; line 1"):
        read_data(write({"problem": "P"}))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PROCESS_BENCH, "label": 3}, "label is 3"),
        ({**PROCESS_BENCH, "label": "1"}, "label is '1'"),
        ({**PROCESS_BENCH, "label": 0.5}, "label is 0.5"),
        ({**PROCESS_BENCH, "label": True}, "label is True"),
        ({"modified_question": "Q", "modified_process": ["a"], "error_steps": [2]}, "error_steps are [2]"),
        ({"modified_question": "Q", "modified_process": ["a"], "error_steps": ["1"]}, "error_steps is '1'"),
        ({"modified_question": "Q", "modified_process": ["a"], "error_steps": 1}, "error_steps are int"),
        ({"prompt": "Q", "completions": ["a", "b"], "labels": [True]}, "labels are 1 items"),
        ({"prompt": "Q", "completions": ["a", "b"], "labels": [True, "False"]}, "label 1 is 'False'"),
        ({"prompt": "Q", "completions": ["a", "b"], "labels": [None, True]}, "a step has no label"),
        ({"input": "Q Step 1: a ки", "label": "Q Step 1: b +", "task": "GSM8K"}, "label is not the text of input"),
        ({**PROCESS_BENCH, "steps": ["one", "", "three"], "label": 1}, "first wrong step (1) is empty"),
    ],
)
def test_labels_that_cannot_be_used_are_counted_with_their_reason(write: Write, row: Any, said: str) -> None:
    data = read_data(write(row))
    assert data.traces[0].first_wrong is None
    assert said in data.traces[0].unlabelled
    assert sum(data.unlabelled.values()) == 1
    assert data.skipped == ()


@pytest.mark.parametrize(
    ("row", "first_wrong", "texts"),
    [
        ({**PROCESS_BENCH, "label": 1.0, "final_answer_correct": 0.0}, 1, ("one", "two", "three")),
        ({**PROCESS_BENCH, "steps": ["one", "", "three"], "label": 2}, 1, ("one", "three")),
        ({"modified_question": "Q", "modified_process": ["a", " ", "b"], "error_steps": [3, 9]}, 1, ("a", "b")),
        ({"modified_question": "Q", "modified_process": ["a", "b"], "error_steps": []}, -1, ("a", "b")),
        ({"prompt": "Q", "completions": ["a", "b"], "labels": [1, 0]}, 1, ("a", "b")),
        ({"prompt": "Q", "steps": ["a", "b"], "labels": [1.0, -1.0]}, 1, ("a", "b")),
        (
            {"prompt": [{"role": "user", "content": "Q"}], "labels": [True, False],
             "completions": [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]]},
            1, ("a", "b"),
        ),
        (
            {"input": "Q Step 1: a ки\nStep 2: b ки", "label": "Q Step 1: a +\nStep 2: b -", "task": "MATH"},
            1, ("Step 1: a", "Step 2: b"),
        ),
    ],
)  # fmt: skip
def test_labels_stay_with_their_steps(write: Write, row: Any, first_wrong: int, texts: tuple[str, ...]) -> None:
    (trace,) = read_data(write(row)).traces
    assert (trace.first_wrong, trace.texts, trace.unlabelled) == (first_wrong, texts, "")
    assert trace.right == tuple(first_wrong == -1 or index < first_wrong for index in range(len(texts)))


@pytest.mark.parametrize("value", ["false", "False", "true", 2, [True]])
def test_an_answer_is_never_right_by_a_word(write: Write, value: Any) -> None:
    (trace,) = read_data(write({**PROCESS_BENCH, "final_answer_correct": value})).traces
    assert trace.correct is None
    (trace,) = read_data(write({"problem": "P", "candidates": [{"text": "x", "correct": value}]})).traces
    assert trace.correct is None
    assert "correct is" in trace.unlabelled


def test_a_step_that_the_labeler_wrote_is_right(write: Write) -> None:
    steps = [
        {"completions": [{"text": "bad", "rating": -1}], "chosen_completion": None,
         "human_completion": {"text": "mine", "rating": None}},
        {"completions": [{"text": "next", "rating": -1}], "chosen_completion": 0, "human_completion": None},
    ]  # fmt: skip
    (trace,) = read_data(write({"question": {"problem": "P"}, "label": {"steps": steps}})).traces
    assert (trace.texts, trace.right, trace.first_wrong) == (("mine", "next"), (True, False), 1)


def test_two_classes_of_prmbench_may_share_a_number(write: Write) -> None:
    row = {"modified_question": "Q", "modified_process": ["a"], "error_steps": [1], "idx": 7}
    data = read_data(write({**row, "classification": "circular"}, {**row, "classification": "confidence"}))
    assert [trace.id for trace in data.traces] == ["circular/7", "confidence/7"]


def test_rows_with_one_id_are_distinguished(write: Write, tmp_path: Path) -> None:
    data = read_data(write(PROCESS_BENCH, PROCESS_BENCH))
    assert [trace.id for trace in data.traces] == ["a", "a#2"]
    with pytest.raises(InputError, match="holds no rows"):
        read_data(write(name="empty"))
    with pytest.raises(InputError, match="cannot be read"):
        read_data(tmp_path / "nowhere")


def test_one_row_does_not_decide_how_another_is_split(write: Write) -> None:
    rows = [{"problem": "P", "completion": text} for text in ("a\n\nb", "a\nb", "a<extra_0>b")]
    data = read_data(write(*rows), separators=("<extra_0>",))
    assert [trace.texts for trace in data.traces] == [("a", "b"), ("a\nb",), ("a", "b")]
    assert data.one_step == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 1,234 eggs.", "1234"), ("A: 78", "78"), ("-3.50", "-3.5"), ("2.0", "2"), ("none", None), ("10 of 20.", "20")],
)
def test_the_last_number_is_the_answer(text: str, number: str | None) -> None:
    assert last_number(text) == number
