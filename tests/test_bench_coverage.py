"""Coverage: all rows of a table use the same traces, and everything that figures skip is counted with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_runs import PROBLEM, measure, needs, reference_of, rows_of, silent, write_rows
from command_line import edit_manifest, run

from edge_prm.errors import BackendError
from edge_prm.manifest import read_manifest
from edge_prm_bench import scoring
from edge_prm_bench.data import read_data
from edge_prm_bench.scorers import ReferenceScorer, bundle_scorer, reference_scorer
from edge_prm_bench.statistics import coverage
from edge_prm_bench.statistics.coverage import Missing

needs("onnxruntime", "onnx", "tabulate")


@pytest.fixture
def short(bundle: Path, tmp_path: Path) -> Path:
    """The same bundle with a context of 300 tokens."""
    return edit_manifest(
        Path(shutil.copytree(bundle, tmp_path / "short")), lambda fields: fields.update(context_length=300)
    )


def test_all_rows_of_a_table_use_the_same_traces(bundle: Path, short: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows_of(8, "pens", long=(2, 5)))
    reference = reference_of(bundle, data, tmp_path / "r", 0.01, skip=(0,))
    timed = ("--lengths", "64", "--runs", 2)
    for bundles in ((bundle, short), (short, bundle)):
        markdown = tmp_path / "x.md"
        facts = measure("suite", *bundles, "--data", data, "--reference", reference, *timed, "--markdown", markdown)
        pairings = [row["pairing"] for row in facts["fidelity"]["quantization"]]
        assert {p["name"]: (p["traces"], p["skipped"], p["own"]) for p in pairings} == {
            bundle.name: (5, 3, 7),
            "short": (5, 3, 5),
        }
        assert {(r["name"], r["sample"]["traces"], r["sample"]["own"]) for r in facts["quality"]["steps"]} == {
            (bundle.name, 5, 8), ("short", 5, 6), ("tiny-sigmoid fp32, torch", 5, 7),
        }  # fmt: skip
        reasons = {(row["by"], row["count"], row["reason"]) for row in facts["skipped"]}
        assert ("short", 2, "traces over the context of 300 tokens") in reasons
        assert ("tiny-sigmoid fp32, torch", 1, "traces that were skipped in the reference") in reasons
        assert (bundle.name, 3, "quality: traces that another row of this file has no reward for") in reasons
        tables = markdown.read_text(encoding="utf-8")
        assert "7 of its own" in tables
        assert "**Skipped**" in tables


def test_a_bundle_that_scores_no_trace_does_not_empty_the_table(bundle: Path, short: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows_of(3, "pens", long=(0, 1, 2)))
    facts = measure("quality", bundle, short, "--data", data, exit_code=1)
    assert {(row["name"], row["sample"]["traces"]) for row in facts["quality"]["steps"]} == {(bundle.name, 3)}
    assert "over the context of 300 tokens" in facts["failures"][0]["reason"]


def test_rows_and_labels_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"problem": "P", "steps": ["a"], "label": 0},
        {"problem": "P", "steps": ["a"], "labels": [None]},
        {"problem": "P", "steps": ["a"], "labels": [None]},
        {"problem": "P", "steps": ["a"]},
        "{", "{",
        *({"problem": "P", f"field_{index}": 1} for index in range(20)),
    ]  # fmt: skip
    data = read_data(write_rows(tmp_path / "data.jsonl", rows))
    counts = {omission.reason: omission.count for omission in coverage.of_file(data, 10, labelled=True)}
    unreadable = {reason: count for reason, count in counts.items() if reason.startswith("rows that cannot be read")}
    assert sum(unreadable.values()) == 22
    assert len(unreadable) == coverage.MOST_REASONS + 1  # the rest is summed up
    assert [count for reason, count in unreadable.items() if "not valid JSON" in reason] == [2]
    assert counts["quality: traces without a usable label: a step has no label"] == 2
    assert counts["quality: traces without a usable label: the row has no label"] == 1
    assert counts["traces beyond the first 4, which are measured; --limit 0 takes all"] == 6


def score_of(rewards: tuple[Any, ...]) -> Any:
    """What the benchmark reads of a Score: rewards, and where the tokens of their steps end."""
    ends = range(10, 10 + len(rewards))
    return SimpleNamespace(rewards=rewards, steps=[SimpleNamespace(tokens=(0, end)) for end in ends])


@pytest.mark.parametrize("failing", [{1}, {0, 1}, {3}, {0, 1, 2, 3}])
def test_rewards_stay_with_their_traces_when_others_fail(failing: set[int], tmp_path: Path, bundle: Path) -> None:
    data = read_data(write_rows(tmp_path / "data.jsonl", rows_of(4, "pens")))
    which = {trace.trajectory.prompt: index for index, trace in enumerate(data.traces)}

    class Engine:
        def score_many(self, trajectories: Any) -> Iterator[Any]:
            for trajectory in trajectories:
                if (index := which[trajectory.prompt]) in failing:
                    raise BackendError(f"the reward at token {index} is nan")
                yield score_of((float(index),) * len(trajectory.steps))

    scorer = bundle_scorer(bundle, read_manifest(bundle), "x", None)
    scored = scoring.rewards_of_bundle(scorer, Engine(), data, silent)  # type: ignore[arg-type]
    assert scored.indices == {0, 1, 2, 3} - failing
    assert all(scored.rewards[index][0] == index for index in scored.indices)  # type: ignore[index]
    assert {index: len(ends) for index, ends in scored.positions.items()} == {
        index: len(data.traces[index].trajectory.steps) for index in scored.indices
    }
    assert scored.missing == {
        i: Missing("traces that could not be scored", f"the reward at token {i} is nan") for i in failing
    }


def test_an_engine_that_cannot_start_shifts_no_rewards(tmp_path: Path, bundle: Path) -> None:
    data = read_data(write_rows(tmp_path / "data.jsonl", rows_of(3, "pens")))
    attempts: list[int] = []

    class Engine:
        def score_many(self, trajectories: Any) -> Iterator[Any]:
            attempts.append(1)
            if len(attempts) == 1:
                raise BackendError("no sequence is free")
            return iter([score_of((trajectory.prompt,)) for trajectory in trajectories])

    scorer = bundle_scorer(bundle, read_manifest(bundle), "x", None)
    scored = scoring.rewards_of_bundle(scorer, Engine(), data, silent)  # type: ignore[arg-type]
    assert scored.rewards == [None, *((trace.trajectory.prompt,) for trace in data.traces[1:])]


def test_rewards_of_a_reference_that_are_not_finite_are_counted(bundle: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "data.jsonl", rows_of(6, "pens"))
    scorer = reference_scorer(reference_of(bundle, file, tmp_path / "r", 0.0), None)
    assert isinstance(scorer, ReferenceScorer)
    data = read_data(file)
    known = [(0.5,) * len(trace.texts) for trace in data.traces]
    known[2] = (float("nan"),) * len(known[2])
    scored = scoring.rewards_of_reference(scorer, known, data)
    assert scored.indices == {0, 1, 3, 4, 5}
    assert "not finite" in scored.missing[2].reason


def test_lengths_over_the_context_are_listed(short: Path) -> None:
    facts = measure("latency", short, "--lengths", "64,64,512", "--runs", 2, "--threads", 1)
    assert [row["tokens"] for row in facts["bundles"][0]["speed"]["prefill"]] == [64]
    assert facts["skipped"][0]["reason"] == "lengths over the context of 300 tokens"
    assert facts["bundles"][0]["device"] == "cpu"


def test_completions_of_one_step_have_a_note(bundle: Path, bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    lines = "First, 4 and 6 are 10 pens in all.\nThen 10 - 2 = 8 pens are left.\nThe answer is 8 pens."
    rows = [{"problem": PROBLEM, "completion": lines}, {"problem": "P", "completion": "a\n\nb"}]
    data = write_rows(tmp_path / "a.jsonl", rows)
    full = bundle_of("sigmoid", "fp32")
    facts = measure("fidelity", bundle, "--data", data, "--reference", full, "--markdown", tmp_path / "x.md")
    (note,) = facts["notes"]
    assert note.startswith("a.jsonl: 1 completions are read as one step each")
    assert note in (tmp_path / "x.md").read_text(encoding="utf-8")


def test_rows_that_cannot_be_read_are_listed_and_end_with_exit_code_1(bundle: Path, tmp_path: Path) -> None:
    labelled = [json.dumps({"problem": "P", "steps": ["a", "b"], "label": label}) for label in (-1, 1)]
    data = write_rows(tmp_path / "data.jsonl", [labelled[0], "{", '{"problem": "P"}', labelled[1]])
    facts = measure("quality", bundle, "--data", data, "--threads", 1, exit_code=1)
    assert sum(row["count"] for row in facts["skipped"] if row["reason"].startswith("rows")) == 2
    assert facts["quality"]["steps"][0]["sample"]["traces"] == 2
    stderr = run("bench", "quality", bundle, "--data", data, "--threads", 1).stderr
    assert "data.jsonl: 1 rows that cannot be read: not valid JSON" in stderr
    assert "(line 2)" in stderr
    assert "its fields are problem" in stderr
