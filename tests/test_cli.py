"""The command line: rows in, rows or a view out, one line for each error, and exit codes a script can rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CANDIDATES, PROMPT, RANK_ROW, ROW, STEPS, refused, run

import edge_prm
from edge_prm.aggregate import AGGREGATES
from edge_prm.score import json_line

# score


def test_score_gives_the_rewards_of_the_python_api(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(ROW, {**ROW, "id": "x", "steps": STEPS[:2]}), "--json")
    assert result.exit_code == 0
    with edge_prm.load(bundle) as prm:
        expected = [prm.score(PROMPT, STEPS), prm.score(PROMPT, STEPS[:2])]
    for line, id_, score in zip(result.stdout.splitlines(), (1, "x"), expected, strict=True):
        facts, wanted = json.loads(line), json.loads(json_line({"id": id_} | score.as_dict()))
        assert facts == wanted


@pytest.mark.parametrize("prompt", ["problem", "prompt"])
@pytest.mark.parametrize("completion", ["completion", "response", "output", "solution"])
def test_score_knows_the_usual_field_names(bundle: Path, rows: Callable, prompt: str, completion: str) -> None:
    result = run("score", bundle, rows({prompt: PROMPT, completion: "\n\n".join(STEPS), "level": 3}, ROW), "--json")
    renamed, usual = (json.loads(line) for line in result.stdout.splitlines())
    assert renamed["rewards"] == usual["rewards"]


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_score_aggregates_as_asked(bundle: Path, rows: Callable, name: str) -> None:
    row = json.loads(run("score", bundle, rows(ROW), "--json", "--aggregate", name).stdout)
    assert row["score"] == AGGREGATES[name](row["rewards"])


def test_score_splits_as_asked(bundle: Path, rows: Callable) -> None:
    file = rows({"problem": PROMPT, "completion": "a\nb\n\nc; d"})
    counts = {split: len(json.loads(run("score", bundle, file, "--json", "--split", split).stdout)["rewards"])
              for split in ("blank", "lines", "; ?")}  # fmt: skip
    assert counts == {"blank": 2, "lines": 3, "; ?": 2}


@pytest.mark.parametrize("command", ["score", "rank"])
def test_rows_come_from_standard_input_too(bundle: Path, command: str) -> None:
    row = json.dumps(ROW if command == "score" else RANK_ROW)
    result = run(command, bundle, "-", "--json", stdin=f"{row}\n{row}\n")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


def test_json_output_is_nothing_but_json(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(ROW, {**ROW, "id": {"a": "é"}}), "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, {"a": "é"}]
    assert result.stdout.isascii()


def test_the_view_shows_every_step_and_marks_the_first_weak_one(bundle: Path, rows: Callable) -> None:
    rewards = json.loads(run("score", bundle, rows(ROW), "--json").stdout)["rewards"]
    threshold = sorted(rewards)[1]  # one step is below it
    weak = rewards.index(min(rewards))
    result = run("score", bundle, rows(ROW), "--weak-below", threshold)
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.startswith("1  3 steps, ")
    assert f"last {rewards[-1]:.3f}" in head
    assert len(lines) == 3
    for index, (line, step, reward) in enumerate(zip(lines, STEPS, rewards, strict=True)):
        assert line.split()[0] == str(index + 1)
        assert f"{reward:.3f}" in line
        assert step in line
        assert ("first weak step" in line) == (index == weak)


def test_the_view_marks_no_step_when_none_is_weak(bundle: Path, rows: Callable) -> None:
    assert "weak" not in run("score", bundle, rows(ROW), "--weak-below", 0).stdout


def test_the_view_marks_the_first_of_many_weak_steps(bundle: Path, rows: Callable) -> None:
    _, first, *others = run("score", bundle, rows(ROW), "--weak-below", 1).stdout.splitlines()
    assert "first weak step" in first
    assert not any("weak" in line for line in others)


def test_the_view_keeps_a_step_on_one_line_and_shortens_it(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows({"problem": PROMPT, "steps": ["a\nb  c", "long " * 60]}), "--weak-below", 0)
    _, first, second = result.stdout.splitlines()
    assert first.endswith("a b c")
    assert second.endswith("…")


def test_the_view_lets_no_text_steer_the_terminal(bundle: Path, rows: Callable) -> None:
    row = {"id": "\x1b]0;id\x07", "problem": PROMPT, "steps": ["\x1b[2Jcleared", "bell\x07 and \x9b2J"]}
    result = run("score", bundle, rows(row), color=True)
    assert "cleared" in result.stdout
    for steering in ("\x1b[2J", "\x1b]0", "\x07", "\x9b"):
        assert steering not in result.stdout


def test_the_view_shows_characters_that_are_joined(bundle: Path, rows: Callable) -> None:
    assert "👩\u200d👧" in run("score", bundle, rows({"problem": PROMPT, "steps": ["👩\u200d👧"]})).stdout


def test_an_error_lets_no_text_steer_the_terminal(bundle: Path, rows: Callable) -> None:
    assert "\x1b" not in run("score", bundle, rows({"\x1b[2J": 1}, ROW), color=True).stderr


@pytest.mark.parametrize("view", [[], ["--json"]])
def test_an_id_that_is_no_unicode_stops_nothing(bundle: Path, rows: Callable, view: list[str]) -> None:
    line = b'{"id": "\\ud800", "problem": "Q", "steps": ["a"]}'
    assert run("score", bundle, rows(line, ROW), *view).exit_code == 0


# rows that are bad


BAD_ROWS = [
    (b'{"problem": "Q", "steps": ["a"]', "not valid JSON"),
    (b'{"problem": "Q", "steps": ["\xff"]}', "not UTF-8"),
    (b"[" * 100_000, "not valid JSON"),
    (b"[1, 2]", "holds list, not an object"),
    (b"null", "holds NoneType"),
    ({"steps": ["a"]}, "no problem or prompt or question; its fields are steps"),
    ({"problem": "Q"}, "no steps (a list), completion"),
    ({}, "its fields are none"),
    ({"problem": 7, "steps": ["a"]}, "problem is int"),
    ({"problem": "", "steps": ["a"]}, "prompt is empty"),
    ({"problem": "Q", "steps": "a"}, "steps are str, not a list"),
    ({"problem": "Q", "steps": []}, "empty list"),
    ({"problem": "Q", "steps": ["a", 3]}, "item 1 is int"),
    ({"problem": "Q", "steps": ["a", " "]}, "step 1 is empty"),
    ({"problem": "Q", "completion": None}, "no steps (a list), completion"),
    ({"problem": "Q", "completion": " "}, "completion is empty"),
    (b'{"problem": "Q\\ud800", "steps": ["a"]}', "lone surrogate"),
    ({"problem": "Q", "steps": ["word " * 1000]}, "context holds 512"),
]


@pytest.mark.parametrize(("bad", "said"), BAD_ROWS, ids=[said for _, said in BAD_ROWS])
def test_a_bad_row_is_named_by_its_line_and_the_others_are_scored(
    bundle: Path, rows: Callable, bad: Any, said: str
) -> None:
    result = run("score", bundle, rows(ROW, b"", bad, ROW), "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 4]
    error = next(line for line in result.stderr.splitlines() if line.startswith("Error"))
    assert "rows.jsonl, line 3: " in error
    assert said in error
    assert "2 rows done, 1 bad" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (KeyError, "no steps (a list)"),
        (None, "no steps (a list)"),
        ([], "candidates are missing, empty"),
        ("a", "not a list"),
    ],
)
def test_a_bad_row_of_candidates_is_named(bundle: Path, rows: Callable, candidates: Any, said: str) -> None:
    row = {"problem": "Q"} | ({} if candidates is KeyError else {"candidates": candidates})
    result = run("rank", bundle, rows(row, RANK_ROW), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["id"] == 2
    assert "line 1: " in result.stderr
    assert said in result.stderr


def test_nothing_but_bad_rows_is_exit_code_1(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(b"{", b"{"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "0 rows done, 2 bad" in result.stderr


def test_strict_stops_at_the_first_bad_row(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(ROW, b"{", ROW, b"{"), "--json", "--strict")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.count("Error") == 1


def test_a_byte_order_mark_blank_lines_and_windows_lines_are_no_fault(bundle: Path, rows: Callable) -> None:
    line = json.dumps(ROW).encode()
    result = run("score", bundle, rows(b"\xef\xbb\xbf" + line + b"\r", b" \r", b"", line + b"\r", b""), "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 4]


@pytest.mark.parametrize("data", [b"", b"\n\n", b" \n"])
def test_a_file_without_rows_is_bad_input(bundle: Path, rows: Callable, data: bytes) -> None:
    refused(run("score", bundle, rows(data)), "rows.jsonl holds no rows")


def test_a_file_that_is_missing_is_bad_input(bundle: Path, tmp_path: Path) -> None:
    refused(run("score", bundle, tmp_path / "nowhere.jsonl"), "nowhere.jsonl")


# rank


def test_rank_gives_the_ranking_of_the_python_api(bundle: Path, rows: Callable) -> None:
    result = run("rank", bundle, rows(RANK_ROW | {"id": "q7"}), "--json", "--aggregate", "mean")
    assert result.exit_code == 0
    with edge_prm.load(bundle) as prm:
        ranking = prm.rank(PROMPT, CANDIDATES, aggregate="mean")
    assert json.loads(result.stdout) == json.loads(json_line({"id": "q7"} | ranking.as_dict()))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (3, "candidate 1: it is int"),
        ({"score": 1}, "candidate 1: it has no text"),
        ("", "candidate 1: completion is empty"),
        (None, "candidate 1: it is NoneType"),
        (["b", None], "candidate 1: step 1 is NoneType"),
        ("word " * 1000, "candidate 1: the text is"),
        ("<think></think>", "candidate 1: completion '<think></think>' holds tags only"),
        ([{"role": "user", "content": "a"}], "candidate 1: it holds 0 assistant messages"),
    ],
)
def test_a_bad_candidate_has_no_score_and_a_reason(bundle: Path, rows: Callable, bad: Any, said: str) -> None:
    result = run("rank", bundle, rows({"problem": PROMPT, "candidates": ["a", bad, STEPS]}), "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["scores"][1] is None
    assert facts["candidates"][1] is None
    assert [score is None for score in facts["scores"]] == [False, True, False]
    assert facts["best"] in (0, 2)
    assert [error["candidate"] for error in facts["errors"]] == [1]
    assert said in facts["errors"][0]["reason"]
    assert f"line 1, {said}" in result.stderr
    shown = run("rank", bundle, rows({"problem": PROMPT, "candidates": ["a", bad, STEPS]}))
    assert "no score" in shown.stdout.splitlines()[-1]


def test_a_row_with_one_answer_is_not_ranked(bundle: Path, rows: Callable) -> None:
    result = run("rank", bundle, rows(ROW, RANK_ROW), "--json")
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 1)
    assert "line 1: it has one answer (steps) and no candidates; `edge-prm score` scores it" in result.stderr


def test_every_candidate_of_a_row_is_scored(bundle: Path, rows: Callable) -> None:
    file = rows({"problem": PROMPT, "generations": ["a\n\nb", "", "c"], "solution": "the reference"})
    result = run("score", bundle, file, "--json")
    assert result.exit_code == 1
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(fact["id"], fact["candidate"]) for fact in facts] == [(1, 0), (1, 2)]
    assert "the reference" not in result.stdout
    assert "line 1, candidate 1: completion is empty" in result.stderr


def test_candidates_may_be_objects(bundle: Path, rows: Callable) -> None:
    objects = [{"steps": STEPS, "model": "x"}, {"text": CANDIDATES[1]}, {"text": ["14"]}]
    result = run("rank", bundle, rows({"prompt": PROMPT, "candidates": objects}, RANK_ROW), "--json")
    left, right = (json.loads(line) for line in result.stdout.splitlines())
    assert left["rewards"] == right["rewards"]


def test_rank_names_the_candidates_that_were_pruned(bundle: Path, rows: Callable) -> None:
    row = json.loads(run("rank", bundle, rows(RANK_ROW), "--json", "--prune-below", 1).stdout)
    assert (row["best"], row["pruned"]) == (None, [0, 1, 2])
    assert [len(rewards) for rewards in row["rewards"]] == [1, 1, 1]


def test_early_stop_gives_the_same_best(bundle: Path, rows: Callable) -> None:
    best = [json.loads(run("rank", bundle, rows(RANK_ROW), "--json", "--aggregate", "min", *stop).stdout)["best"]
            for stop in ([], ["--early-stop"])]  # fmt: skip
    assert best[0] == best[1]


def test_early_stop_under_an_aggregate_that_can_rise_is_named(bundle: Path, rows: Callable) -> None:
    result = run("rank", bundle, rows(RANK_ROW), "--aggregate", "mean", "--early-stop")
    refused(result, "early_stop needs aggregate min or prod")


def test_the_view_of_a_ranking_shows_the_best_first(bundle: Path, rows: Callable) -> None:
    scores = json.loads(run("rank", bundle, rows(RANK_ROW), "--json").stdout)["scores"]
    order = sorted(range(3), key=lambda i: -scores[i])
    head, *lines = run("rank", bundle, rows(RANK_ROW)).stdout.splitlines()
    assert head.startswith("1  3 candidates, last")
    assert [int(line.split()[0]) for line in lines] == order
    assert ["best" in line for line in lines] == [True, False, False]
    assert "3 * 4 = 12" in "".join(lines)


def test_the_view_of_a_ranking_says_what_was_pruned(bundle: Path, rows: Callable) -> None:
    lines = run("rank", bundle, rows(RANK_ROW), "--prune-below", 1).stdout.splitlines()[1:]
    assert all("pruned" in line and "best" not in line for line in lines)
