"""The embedded checkpoints are real judges, and the demo shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

import edge_prm
from edge_prm.cli.main import main
from edge_prm.demo import CHECKPOINTS, folder
from edge_prm.demo.derivations import generate

pytest.importorskip("onnxruntime", reason='needs the engine: pip install "edge-prm[cpu,export]"')
pytest.importorskip("onnx", reason='needs the exporter: pip install "edge-prm[cpu,export]"')

HELD_OUT_SEED = 1_000_003  # of train_demo.py, which keeps these problems out of the training data
HELD_OUT = 500
LEAST_AUC = 0.95
MOST_BYTES = 8_000_000


def auc(rewards: Sequence[float], labels: Sequence[bool]) -> float:
    """Share of (right, wrong) pairs in which the right step has the higher reward; ties count half."""
    right = [reward for reward, label in zip(rewards, labels, strict=True) if label]
    wrong = [reward for reward, label in zip(rewards, labels, strict=True) if not label]
    wins = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    return wins / (len(right) * len(wrong))


def test_auc_counts_ties_half() -> None:
    assert auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("recipe", ["int8", "fp32"])
@pytest.mark.parametrize("name", sorted(CHECKPOINTS))
def test_held_out_steps_are_judged_right(name: str, recipe: str, tmp_path: Path) -> None:
    import edge_prm_export

    derivations = list(generate(HELD_OUT_SEED, HELD_OUT))
    with edge_prm.load(edge_prm_export.export(name, tmp_path / "bundle", recipe=recipe)) as prm:
        rewards = [r for score in prm.score_many((d.problem, d.steps) for d in derivations) for r in score.rewards]
    assert auc(rewards, [label for d in derivations for label in d.labels]) >= LEAST_AUC


def test_the_checkpoints_are_small() -> None:
    files = [file for name in CHECKPOINTS for file in folder(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_the_demo_runs_and_picks_the_right_candidate() -> None:
    result = CliRunner().invoke(main, ["demo", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["best"] == 2
    assert facts["right"] >= 0.9
    assert facts["max_difference"] <= 0.2


def test_the_demo_marks_the_planted_mistakes() -> None:
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0, result.output
    assert "◀ first weak step" in result.stdout
    assert "◀ best" in result.stdout
