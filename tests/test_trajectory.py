"""Splitting text into steps: nothing of the text is lost, and bad input is named."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_prm.errors import InputError
from edge_prm.split import SPLITS, THINKING_TAGS, other_split, splitter, tags_only
from edge_prm.trajectory import Step, Trajectory

PIECES = [
    "a",
    "b1. ",
    " ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\v",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u2028",
    "\u0301",
    "é",
    "中",
    "😀",
    "<think>",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(st.characters(exclude_categories=["Cs"]))


def is_empty(text: str) -> bool:
    """Nothing but white space and tags."""
    return not text.strip() or tags_only(text)


def texts(trajectory: Trajectory) -> list[str]:
    return [step.text for step in trajectory.steps]


def separators(trajectory: Trajectory) -> list[str]:
    return [step.separator for step in trajectory.steps]


@given(TEXT, st.sampled_from(["auto", "blank", "lines", r"\.", r"(?<=\d)", r"\s+", "a|1", "[ \n]+", "(?=b1)"]))
def test_a_completion_is_kept_verbatim(completion: str, split: str) -> None:
    assume(not is_empty(re.sub(split if split not in SPLITS else r"\s", "", completion)))
    assert Trajectory.of("Q", completion, split=split).completion == completion


@given(TEXT, st.sampled_from(["blank", "lines"]))
def test_steps_of_a_completion_begin_with_text_and_are_closed_by_newlines(completion: str, split: str) -> None:
    assume(not is_empty(completion))
    trajectory = Trajectory.of("Q", completion, split=split)
    for step in trajectory.steps:
        assert step.text.strip()
        assert not re.match(r"\s*[\r\n]", step.text)
    for step in trajectory.steps[:-1]:
        assert step.separator
        assert not step.separator.strip()
        assert step.separator[-1] in "\r\n"
    assert not trajectory.lead.strip()


@given(st.lists(TEXT.filter(lambda text: not is_empty(text)), min_size=1))
def test_steps_of_a_list_are_joined_with_one_blank_line(steps: list[str]) -> None:
    trajectory = Trajectory.of("Q", steps)
    assert separators(trajectory) == ["\n\n"] * (len(steps) - 1) + [""]
    assert trajectory.completion == "\n\n".join(texts(trajectory))
    for given_text, step in zip(steps, trajectory.steps, strict=True):
        assert step.text in given_text
        assert given_text.split() == step.text.split()


@given(st.lists(TEXT.filter(lambda text: not is_empty(text)), min_size=1))
def test_steps_of_a_trajectory_given_as_a_list_give_it_again(steps: list[str]) -> None:
    once = Trajectory.of("Q", steps)
    assert Trajectory.of("Q", texts(once)) == once


@pytest.mark.parametrize(
    ("step", "bare"),
    [("\na\n", "a"), ("a\n\n\n", "a"), ("\r\n a\r\n", " a"), (" \t\n  a", "  a"), ("a  ", "a  "), ("  a", "  a")],
)
def test_a_listed_step_loses_blank_lines_at_its_ends_and_no_more(step: str, bare: str) -> None:
    assert texts(Trajectory.of("Q", [step])) == [bare]


@pytest.mark.parametrize(
    ("completion", "steps", "between"),
    [
        ("a\n\nb", ["a", "b"], ["\n\n", ""]),
        ("a\nb\n\nc", ["a\nb", "c"], ["\n\n", ""]),
        ("a\n\n\n\nb", ["a", "b"], ["\n\n\n\n", ""]),
        ("a\n\nb\n\n", ["a", "b"], ["\n\n", "\n\n"]),
        ("a\n\n \t\n\n  b", ["a", "  b"], ["\n\n \t\n\n", ""]),
        ("a\r\n\r\nb", ["a", "b"], ["\r\n\r\n", ""]),
        ("a\r\rb", ["a", "b"], ["\r\r", ""]),
        ("a\r\n\n\rb", ["a", "b"], ["\r\n\n\r", ""]),
        ("a", ["a"], [""]),
    ],
)
def test_a_completion_is_split_at_blank_lines(completion: str, steps: list[str], between: list[str]) -> None:
    trajectory = Trajectory.of("Q", completion)
    assert (texts(trajectory), separators(trajectory)) == (steps, between)


def test_one_windows_line_end_is_no_blank_line() -> None:
    trajectory = Trajectory.of("Q", "a\r\nb\r\n\r\nc")
    assert texts(trajectory) == ["a\r\nb", "c"]


@pytest.mark.parametrize(
    ("completion", "steps", "between"),
    [
        ("a\nb", ["a", "b"], ["\n", ""]),
        ("a\n\n\nb", ["a", "b"], ["\n\n\n", ""]),
        ("a\r\nb\rc", ["a", "b", "c"], ["\r\n", "\r", ""]),
        ("a\n   \n b\n", ["a", " b"], ["\n   \n", "\n"]),
    ],
)
def test_lines_splits_at_every_line(completion: str, steps: list[str], between: list[str]) -> None:
    trajectory = Trajectory.of("Q", completion, split="lines")
    assert (texts(trajectory), separators(trajectory)) == (steps, between)


def test_a_regular_expression_splits_too() -> None:
    trajectory = Trajectory.of("Q", "one; two;;three", split="; ?")
    assert texts(trajectory) == ["one", "two", "three"]
    assert separators(trajectory) == ["; ", ";;", ""]


def test_an_expression_that_matches_nothing_leaves_one_step() -> None:
    assert texts(Trajectory.of("Q", "a\n\nb", split="(?:STEP)")) == ["a\n\nb"]


def test_blank_lines_before_the_first_step_lead() -> None:
    trajectory = Trajectory.of("Q", "\n  \n\n a\n\nb")
    assert trajectory.lead == "\n  \n\n"
    assert texts(trajectory) == [" a", "b"]


@pytest.mark.parametrize("split", ["blank", "lines"])
def test_white_space_behind_the_last_step_is_no_step(split: str) -> None:
    trajectory = Trajectory.of("Q", "a\n\n  ", split=split)
    assert texts(trajectory) == ["a"]
    assert trajectory.completion == "a\n\n  "


def test_white_space_between_two_separators_is_no_step() -> None:
    trajectory = Trajectory.of("Q", " ;a; ;b; ", split=";")
    assert (trajectory.lead, texts(trajectory), separators(trajectory)) == (" ;", ["a", "b"], ["; ;", "; "])


def test_thinking_lasts_from_one_mark_to_the_other() -> None:
    steps = ["<think>\nfirst", "second", "third</think>", "fourth", "fifth"]
    kinds = [step.kind for step in Trajectory.of("Q", steps).steps]
    assert kinds == ["thinking", "thinking", "thinking", "response", "response"]


def test_the_kind_of_a_step_is_that_of_its_first_character_outside_of_tags() -> None:
    trajectory = Trajectory.of("Q", "so <think>\n\nwait\n\n</think> done\n\nend")
    assert [step.kind for step in trajectory.steps] == ["response", "thinking", "response", "response"]


@pytest.mark.parametrize(("opening", "closing"), [*THINKING_TAGS, ("<THINK>", "</Think>")])
def test_a_tag_is_no_step_but_belongs_to_its_neighbour(opening: str, closing: str) -> None:
    completion = f"{opening}\n\na\n\nb\n\n{closing}\n\nc\n\nd"
    trajectory = Trajectory.of("Q", completion)
    assert texts(trajectory) == [f"{opening}\n\na", f"b\n\n{closing}", "c", "d"]
    assert [step.kind for step in trajectory.steps] == ["thinking", "thinking", "response", "response"]
    assert trajectory.completion == completion


@pytest.mark.parametrize(
    ("completion", "steps", "kinds"),
    [
        ("<think>\n\n</think>\n\na\n\nb", ["<think>\n\n</think>\n\na", "b"], "rr"),
        ("<think></think>\n\na", ["<think></think>\n\na"], "r"),
        ("<think>\na\n\nb", ["<think>\na", "b"], "tt"),  # the closing tag is missing
        ("a\n\nb\n</think>\n\nc", ["a", "b\n</think>", "c"], "ttr"),  # the opening tag is missing
        ("a\n\n</think>\n\nb", ["a\n\n</think>", "b"], "tr"),
        ("a\n\n<think>\n\n", ["a\n\n<think>"], "r"),
        ("a\n\n<think>\n\n</think>\n\nb", ["a", "<think>\n\n</think>\n\nb"], "rr"),
        ("<think>a</think>\n\n<answer>\n\nb\n\n</answer>", ["<think>a</think>", "<answer>\n\nb\n\n</answer>"], "tr"),
        (
            "<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nb\n\n<|end_of_solution|>",
            ["<|begin_of_thought|>\n\na\n\n<|end_of_thought|>", "<|begin_of_solution|>\n\nb\n\n<|end_of_solution|>"],
            "tr",
        ),
    ],
)
def test_tags_that_are_missing_or_empty(completion: str, steps: list[str], kinds: str) -> None:
    trajectory = Trajectory.of("Q", completion)
    assert texts(trajectory) == steps
    assert "".join(step.kind[0] for step in trajectory.steps) == kinds
    assert trajectory.completion.rstrip() == completion.rstrip()


@pytest.mark.parametrize("steps", ["<think>\n\n</think>", " <think>", ["<think>", "</think>"], "</think>\n\n"])
def test_tags_alone_are_an_empty_completion(steps: str | list[str]) -> None:
    with pytest.raises(InputError, match="tags"):
        Trajectory.of("Q", steps)


def test_tags_of_a_list_are_joined_and_places_kept() -> None:
    trajectory = Trajectory.of("Q", ["<think>", "a", "b", "</think>", "c"])
    assert texts(trajectory) == ["<think>\n\na", "b\n\n</think>", "c"]
    assert [step.place for step in trajectory.steps] == [1, 2, 4]
    assert trajectory == Trajectory.of("Q", "<think>\n\na\n\nb\n\n</think>\n\nc")


def test_empty_steps_of_a_list_are_left_out_on_request_and_places_kept() -> None:
    trajectory = Trajectory.of("Q", ["", "a", " \n", "b"], skip_empty=True)
    assert [(step.text, step.place) for step in trajectory.steps] == [("a", 1), ("b", 3)]


def test_thinking_given_apart_comes_first() -> None:
    trajectory = Trajectory.of("Q", "c\n\nd", thinking="a\n\nb")
    assert trajectory.completion == "a\n\nb\n\nc\n\nd"
    assert [step.kind for step in trajectory.steps] == ["thinking", "thinking", "response", "response"]
    assert [step.place for step in trajectory.steps] == [0, 1, 2, 3]


# the bundle's own separator


@pytest.mark.parametrize(
    ("completion", "separator", "steps"),
    [
        ("a.<extra_0>b.<extra_0>c.<extra_0>", "<extra_0>", ["a.", "b.", "c."]),
        ("a.\n\nb.<extra_0>c.", "<extra_0>", ["a.\n\nb.", "c."]),
        ("Step 1: a ки\nStep 2: b ки", " ки", ["Step 1: a", "Step 2: b"]),
        ("Step 1: a киStep 2: b ки", " ки", ["Step 1: a", "Step 2: b"]),
        ("руки кит\n\nки", " ки", ["руки кит"]),
    ],
)
def test_auto_cuts_at_the_bundles_own_separator(completion: str, separator: str, steps: list[str]) -> None:
    trajectory = Trajectory.of("Q", completion, separator=separator)
    assert texts(trajectory) == steps
    assert trajectory.cut_at == separator.strip()
    assert trajectory.steps == Trajectory.of("Q", steps).steps


@pytest.mark.parametrize("options", [{}, {"split": "blank", "separator": "<extra_0>"}, {"separator": "\n"}])
def test_another_separator_is_text(options: dict[str, str]) -> None:
    trajectory = Trajectory.of("Q", "a<extra_0>b\nc\n\nd", **options)
    assert texts(trajectory) == ["a<extra_0>b\nc", "d"]
    assert trajectory.cut_at == ""


def test_words_that_hold_a_separator_of_letters_are_text() -> None:
    assert Trajectory.of("Q", "руки\n\nкит", separator=" ки").cut_at == ""


# ways to split


def test_a_line_of_white_space_is_blank() -> None:
    assert texts(Trajectory.of("Q", "a\n \t\nb\r\n \r\nc")) == ["a", "b", "c"]


def test_empty_matches_cut() -> None:
    trajectory = Trajectory.of("Q", "Step 1: a\nStep 2: b\nStep 3: c", split=r"(?=Step \d)")
    assert texts(trajectory) == ["Step 1: a\n", "Step 2: b\n", "Step 3: c"]
    assert separators(trajectory) == ["", "", ""]


@pytest.mark.parametrize("split", ["", "blanks", "line", "Step", "автор", "x*", "\\n*", "$", "(a|)"])
def test_a_split_that_cannot_be_meant_is_refused(split: str) -> None:
    with pytest.raises(InputError, match="auto, blank or lines"):
        Trajectory.of("Q", "a\n\nb", split=split)


def test_one_step_of_a_text_with_more_is_pointed_out() -> None:
    assert other_split("Step 1: a\nStep 2: b\nStep 3: c", 1) == r"--split '(?=\bStep \d)' would give 3"
    assert other_split("a\nb", 1) == "--split lines would give 2"
    assert other_split("a\nb", 2) == other_split("a", 1) == ""


# trajectories made by hand


@pytest.mark.parametrize(
    ("prompt", "steps", "said"),
    [
        ("", (Step("a"),), "prompt is empty"),
        (None, (Step("a"),), "prompt is NoneType"),
        ("Q", (), "steps are empty"),
        ("Q", [Step("a")], "tuple of Step"),
        ("Q", ("a",), "tuple of Step"),
        ("Q", (Step(" "),), "step 0 is empty"),
        ("Q", (Step("a"), Step(None)), "step 1 is NoneType"),  # type: ignore[arg-type]
        ("Q", (Step("a", separator=None),), "separator of step 0"),  # type: ignore[arg-type]
        ("Q", (Step("a", kind="idea"),), "kind of step 0"),
    ],
)
def test_a_trajectory_made_by_hand_is_checked(prompt: object, steps: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Trajectory(prompt, steps)  # type: ignore[arg-type]


def test_arrays_of_strings_are_lists() -> None:
    assert Trajectory.of("Q", np.array(["a", "b"])) == Trajectory.of("Q", ["a", "b"])  # type: ignore[arg-type]
    assert Trajectory.of(np.str_("Q"), [np.str_("a")]) == Trajectory.of("Q", ["a"])


def test_without_marks_every_step_is_a_response() -> None:
    assert {step.kind for step in Trajectory.of("Q", "a\n\nb\n\nc").steps} == {"response"}
    assert Step("a").kind == "response"


@pytest.mark.parametrize(
    ("prompt", "steps", "said"),
    [
        ("", ["a"], ["prompt is empty"]),
        (" \n", ["a"], ["prompt is empty", r"' \n'"]),
        (None, ["a"], ["prompt is NoneType", "not a string"]),
        (b"Q", ["a"], ["prompt is bytes", "b'Q'"]),
        ("Q\ud800", ["a"], ["prompt is not valid Unicode", "character 1"]),
        ("Q", [], ["steps are an empty list"]),
        ("Q", None, ["steps are NoneType"]),
        ("Q", b"a", ["steps are bytes"]),
        ("Q", {"a": 1}, ["steps are dict"]),
        ("Q", 7, ["steps are int"]),
        ("Q", (step for step in "ab"), ["steps are generator"]),
        ("Q", ["a", ""], ["step 1 is empty", "leave it out"]),
        ("Q", ["a", "b", " \n"], ["step 2 is empty", r"' \n'"]),
        ("Q", ["a", None], ["step 1 is NoneType"]),
        ("Q", [b"a"], ["step 0 is bytes", "b'a'"]),
        ("Q", ["a", "b", ["c"]], ["step 2 is list", "['c']"]),
        ("Q", ["a", "xy\udfff"], ["step 1 is not valid Unicode", "character 2"]),
        ("Q", "", ["completion is empty"]),
        ("Q", "\n \n", ["completion is empty"]),
        ("Q", "abc\ud83d", ["completion is not valid Unicode", "character 3"]),
    ],
)
def test_bad_input_is_named(prompt: object, steps: object, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Trajectory.of(prompt, steps)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    for part in said:
        assert part in str(caught.value)


def test_a_completion_of_separators_only_is_named() -> None:
    with pytest.raises(InputError, match="separators only"):
        Trajectory.of("Q", ";;;", split=";")


@pytest.mark.parametrize("split", ["(", "[a", "*", "a{99999999999999}", None, 3, b"\n", ["a"]])
def test_a_bad_expression_is_named(split: object) -> None:
    with pytest.raises(InputError) as caught:
        Trajectory.of("Q", "a\n\nb", split=split)  # type: ignore[arg-type]
    assert repr(split) in str(caught.value)
    assert "blank" in str(caught.value)


def test_a_message_shows_a_long_value_shortened() -> None:
    with pytest.raises(InputError) as caught:
        Trajectory.of("Q", [list(range(1000))])  # type: ignore[list-item]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["blank", "lines"])
def test_named_splits_match_newlines_only(name: str) -> None:
    assert splitter(name).search("a b. c") is None
    assert splitter(name).search("a\n\nb") is not None
