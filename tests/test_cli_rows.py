"""`score`, `rank` and `rows` on files as people have them: what was read, what was left out, and where output goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from command_line import PROMPT, RANK_ROW, ROW, STEPS, refused, run

TEXT = "3 * 4 = 12\n\n2 + 12 = 13\n\nThe answer is 13."


def scored(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    "row",
    [
        {"question": PROMPT, "thinking_trajectories": ["3 * 4 = 12\n\n2 + 12 = 13"], "attempt": "The answer is 13.", "solution": "14"},
        {"messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": TEXT}]},
        {"prompt": PROMPT, "completions": STEPS, "labels": [True, False, False]},
        {"problem": PROMPT, "generations": [TEXT], "solution": "the reference"},
    ],
)  # fmt: skip
def test_one_reader_gives_the_rewards_of_plain_rows(bundle: Path, rows: Callable, row: dict[str, Any]) -> None:
    plain, other = scored(run("score", bundle, rows(ROW, row), "--json"))
    assert other["rewards"] == plain["rewards"]
    assert [step["text"] for step in other["steps"]] == STEPS


def test_a_json_list_is_scored(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW, {**ROW, "id": "b"}], indent=2))
    result = run("score", bundle, path, "--json")
    assert (result.exit_code, [row["id"] for row in scored(result)]) == (0, [1, "b"])


def test_fields_may_be_named(bundle: Path, rows: Callable) -> None:
    row = {"q": PROMPT, "a": {"text": TEXT}, "many": STEPS, "key": "k"}
    named = ("--prompt-field", "q", "--id-field", "key", "--json")
    result = run("score", bundle, rows(row), "--completion-field", "a.text", *named)
    assert [(fact["id"], len(fact["steps"])) for fact in scored(result)] == [("k", 3)]
    result = run("rank", bundle, rows(row), "--candidates-field", "many", *named)
    assert len(scored(result)[0]["scores"]) == 3
    refused(run("score", bundle, rows(row), "--steps-field", "a", "--completion-field", "b"), "exclude each other")


def test_what_was_scored_is_shown(bundle: Path, rows: Callable) -> None:
    row = {"problem": PROMPT, "completion": "<think>\na\n\nb\n</think>\n\nc<|im_end|>", "id": float("nan")}
    result = run("score", bundle, rows(row), "--json")
    (fact,) = scored(result)
    assert [(step["text"], step["kind"]) for step in fact["steps"]] == [
        ("<think>\na", "thinking"),
        ("b\n</think>", "thinking"),
        ("c<|im_end|>", "response"),
    ]
    assert fact["id"] == 1
    assert fact["notes"] == ["the text ends with <|im_end|>, which is scored as text"]
    assert "<|im_end|>, which is scored as text (1 row)" in result.stderr


def test_one_step_of_a_text_with_more_is_pointed_out_once(bundle: Path, rows: Callable) -> None:
    row = {"problem": PROMPT, "completion": "Step 1: a\nStep 2: b\nStep 3: c"}
    result = run("score", bundle, rows(row, row, ROW), "--json")
    assert result.exit_code == 0
    assert result.stderr.count("gives one step; --split") == 1
    assert "2 texts gave one step" in result.stderr
    hint = result.stderr.split("--split '")[1].split("'")[0]
    again = run("score", bundle, rows(row), "--json", "--split", hint)
    assert (len(scored(again)[0]["steps"]), again.stderr) == (3, "")


@pytest.mark.parametrize("split", ["blanks", "", "x*", "("])
def test_a_split_that_cannot_be_meant_is_refused_before_the_model_is_loaded(rows: Callable, split: str) -> None:
    refused(run("score", "nowhere", rows(ROW), "--split", split), "split")


def test_rows_are_looked_at_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.zip").write_bytes(b"PK\x03\x04" + bytes(30))
    refused(run("score", "nowhere", tmp_path / "rows.zip"), "rows.zip is a zip file")


# output files


@pytest.mark.parametrize("view", [[], ["--json"]])
@pytest.mark.parametrize("command", ["score", "rank"])
def test_output_goes_to_a_file_complete(
    bundle: Path, rows: Callable, tmp_path: Path, command: str, view: list[str]
) -> None:
    file, target = rows(ROW if command == "score" else RANK_ROW), tmp_path / "out.txt"
    shown = run(command, bundle, file, *view)
    result = run(command, bundle, file, *view, "-o", target)
    assert (result.exit_code, result.stdout) == (0, "")
    assert target.read_text(encoding="utf-8") == shown.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_bad_rows_leave_a_complete_file_of_the_others(bundle: Path, rows: Callable, tmp_path: Path) -> None:
    result = run("score", bundle, rows(ROW, b"{", ROW), "--json", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_strict_leaves_no_file(bundle: Path, rows: Callable, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    assert run("score", bundle, rows(ROW, b"{"), "--strict", "-o", target).exit_code == 2
    assert target.read_text() == "old"


@pytest.mark.parametrize("where", ["missing/out.jsonl", "."])
def test_an_output_that_cannot_be_written_is_refused_first(rows: Callable, tmp_path: Path, where: str) -> None:
    refused(run("score", "nowhere", rows(ROW), "-o", tmp_path / where), "cannot be written")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_leaves_nothing_half_written(bundle: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of `score -o`: the target is missing, or complete; the next run removes what is left."""
    rows, target = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({**ROW, "id": index}) + "\n" for index in range(400)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "edge_prm.cli.main", "score", str(bundle), str(rows), "--json", "-o", str(target)]
    start = time.monotonic()
    subprocess.run(command, check=True, env=environment)
    seconds, whole = time.monotonic() - start, target.read_bytes()
    random = Random(7)
    killed = 0
    for _ in range(int(os.environ.get("EDGE_PRM_KILLS", "8"))):
        target.unlink(missing_ok=True)
        process = subprocess.Popen(command, env=environment)
        time.sleep(random.uniform(0, 1.1 * seconds))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() != 0
        assert not target.exists() or target.read_bytes() == whole
    assert killed
    subprocess.run(command, check=True, env=environment)
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


# terminals


@pytest.mark.parametrize("encoding", ["cp1252", "cp936", "ascii", "utf-8"])
@pytest.mark.parametrize("command", ["score", "rank", "rows"])
def test_any_encoding_of_the_terminal_is_served(bundle: Path, rows: Callable, encoding: str, command: str) -> None:
    row = {"problem": "Gr\u00f6\u00dfe \u4e2d \U0001f600 \u2028?", "id": "\u25c0"}
    row |= (
        {"candidates": ["\u4e2d\u6587 \u2264", "b"]}
        if command == "rank"
        else {"completion": "\u4e2d \u2264\n\n\U0001f600 b"}
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": encoding, "TERM": "dumb", "PYTHONUTF8": "0",
    }  # fmt: skip
    arguments = [str(rows(row, {"\u4e2d": 1}))] if command == "rows" else [str(bundle), str(rows(row, {"\u4e2d": 1}))]
    done = subprocess.run(
        [sys.executable, "-m", "edge_prm.cli.main", command, *arguments],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    used = encoding if encoding != "ascii" else "utf-8"  # click takes ASCII for a mistake
    assert "b" in done.stdout.decode(used)
    assert "its fields are" in (done.stdout if command == "rows" else done.stderr).decode(used)


# rows


def test_rows_shows_how_a_file_is_read(rows: Callable) -> None:
    file = rows(
        {"problem": PROMPT, "steps": STEPS, "label": 1},
        {"problem": PROMPT, "generations": ["a\nb", ""], "correctness": [True, False]},
        {"problem": PROMPT, "steps": STEPS, "label": "x"},
        b"{",
        {"modified_question": "Q", "modified_process": ["a"], "error_steps": [1, 4]},
    )
    result = run("rows", file, "--limit", 5)
    assert result.exit_code == 1
    for part in (
        "line 1, id 1: ProcessBench", "1 + response  3 * 4 = 12", "2 - response", "candidate 0, right", "completion is empty",
        "no usable labels: label is 'x'", "left out  an error step that names no step", "5 rows (ProcessBench 2, candidates 1, PRMBench 1)",
        "4 texts to score, 8 steps; 2 with labels of steps", "1 text would give one step", "cannot be read: 2", "not valid JSON",
    ):  # fmt: skip
        assert part in result.stdout, (part, result.stdout)
    facts = json.loads(run("rows", file, "--json", "--limit", 1).stdout)
    assert facts["schema"] == 1
    assert (facts["rows"], facts["candidates"], facts["labelled"], len(facts["first"])) == (5, 4, 2, 1)
    assert facts["formats"] == {"ProcessBench": 2, "candidates": 1, "PRMBench": 1}
    assert sum(facts["bad"].values()) == 2
    assert facts["first"][0]["candidates"][0]["labels"] == [True, False, False]


def test_rows_of_a_good_file_is_exit_code_0(rows: Callable) -> None:
    result = run("rows", rows(ROW), "--json")
    assert (result.exit_code, json.loads(result.stdout)["bad"]) == (0, {})


def test_rows_cuts_at_the_separator_of_a_bundle(bundle_of: Callable, rows: Callable) -> None:
    pytest.importorskip("onnxruntime", reason='this needs onnxruntime: pip install "edge-prm[cpu]"')
    judge = bundle_of("two_class", "fp32")
    file = rows({"problem": PROMPT, "completion": "a<extra_0>b<extra_0>"}, {"problem": PROMPT, "steps": ["a", "b"]})
    shown = json.loads(run("rows", file, "--bundle", judge, "--json").stdout)
    assert [step["text"] for step in shown["first"][0]["candidates"][0]["steps"]] == ["a", "b"]
    result = run("score", judge, file, "--json")
    joined, listed = scored(result)
    assert joined["rewards"] == listed["rewards"]
    assert (joined["cut_at"], joined["notes"]) == ("<extra_0>", ["cut at <extra_0>"])
    assert "cut at <extra_0> (1 row)" in result.stderr
