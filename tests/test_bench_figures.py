"""Fidelity and quality of a file, against values computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_runs import write_rows

from edge_prm_bench.data import Data, read_data
from edge_prm_bench.statistics.best_of_n import best_of_n
from edge_prm_bench.statistics.coverage import Scored
from edge_prm_bench.statistics.fidelity import capability, largest_differences, quantization
from edge_prm_bench.statistics.steps import Threshold, fit_threshold, step_quality

PROCESS_BENCH = {"id": "a", "problem": "P", "steps": ["one", "two", "three"], "label": 1}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    rows = [
        {"id": f"p{i}", "problem": "P", "candidates": [{"text": "a\n\nb", "correct": True}, {"text": "c", "correct": False}]}
        for i in range(3)
    ]  # fmt: skip
    return read_data(write_rows(tmp_path / "data.jsonl", rows))


def test_quantization_by_hand(data: Data) -> None:
    reference = Scored("full", [[0.9, 0.6], [0.2], [0.8, 0.4], [0.5], None, [0.3]], "last")
    ours = Scored("int8", [[0.8, 0.6], [0.4], [0.8, 0.6], [0.5], [0.1, 0.1], [0.3]], "last")
    result = quantization(data, ours, reference)
    assert (result.pairing.traces, result.pairing.rewards, result.pairing.skipped) == (5, 7, 1)
    assert result.difference.mean.value == pytest.approx((0.1 + 0.2 + 0.2) / 7)
    assert result.difference.maximum == pytest.approx(0.2)
    assert result.verdicts.flip_rate.value == pytest.approx(1 / 7)  # 0.4 -> 0.6
    assert result.verdicts.first_weak.value == pytest.approx(4 / 5)  # [0.8, 0.4] has a weak step, [0.8, 0.6] has none
    assert result.agreement.best.value == 0.5  # p0: the same; p1: 0.4 against 0.5, now 0.6 against 0.5
    assert result.difference.mean.low <= result.difference.mean.value <= result.difference.mean.high
    assert largest_differences(data, ours, reference, 2) == [1, 2]


def test_differences_by_position_by_hand(data: Data) -> None:
    reference = Scored("full", [[0.9, 0.6], [0.2], [0.8, 0.4], [0.5], None, [0.3]], "last")
    positions = {0: [512, 513], 1: [40], 2: [600, 5000], 3: [41], 4: [1, 2], 5: [42]}
    ours = Scored(
        "int8", [[0.8, 0.6], [0.4], [0.7, 0.6], [0.5], [0.1, 0.1], [0.3]], "last", positions=positions
    )  # fmt: skip
    result = quantization(data, ours, reference)
    assert [(place.start, place.end, place.rewards) for place in result.by_position] == [
        (0, 512, 4), (512, 1024, 2), (4096, 8192, 1)
    ]  # fmt: skip
    assert [place.mean.value for place in result.by_position] == pytest.approx([0.3 / 4, 0.05, 0.2])
    assert quantization(data, reference, reference).by_position == ()  # references do not know positions


def test_capability_by_hand(data: Data) -> None:
    reference = Scored("large", [[0.9, 0.6], [0.2], [0.8, 0.4], [0.5], [0.7, 0.7], [0.7]], "min")
    ours = Scored("small", [[0.5, 0.3], [0.1], [0.8, 0.2], [0.1], [0.9, 0.9], [0.8]], "last")
    result = capability(data, ours, reference)
    assert result.order.value == 0.5  # p0 the same, p1 the other way round, p2 tied in the reference
    assert result.agreement.best.value == pytest.approx(2 / 3)


def test_data_without_common_traces_gives_no_numbers(data: Data) -> None:
    nothing = Scored("none", [None] * 6, "last")
    result = quantization(data, nothing, nothing)
    assert (result.pairing.traces, result.pairing.skipped) == (0, 6)
    assert result.difference.mean.value != result.difference.mean.value
    assert result.agreement.spearman.value != result.agreement.spearman.value


def test_best_of_n_of_a_file(data: Data) -> None:
    scored = Scored("judge", [[0.1, 0.9], [0.5], [0.1, 0.2], [0.5], [0.1, 0.9], [0.5]], "last")
    result = best_of_n(data, scored)
    assert result is not None
    assert ([point.n for point in result.points], result.problems) == ([1, 2], 3)
    assert [point.chosen.value for point in result.points] == pytest.approx([0.5, 2 / 3])
    assert [point.oracle for point in result.points] == pytest.approx([0.5, 1.0])
    assert [point.random for point in result.points] == pytest.approx([0.5, 0.5])
    assert "chooses right 66.7% of the time" in result.verdict


def test_the_verdict_says_when_majority_vote_wins(tmp_path: Path) -> None:
    texts = [{"text": f"A: {n}", "correct": n == 4} for n in (4, 4, 5)]
    data = read_data(write_rows(tmp_path / "data.jsonl", [{"problem": "P", "candidates": texts}]))
    result = best_of_n(data, Scored("judge", [[0.1], [0.2], [0.9]], "last"))
    assert result is not None
    assert "majority vote wins with 100.0%" in result.verdict


def test_files_without_labels_have_no_quality(data: Data, tmp_path: Path) -> None:
    assert step_quality(data, Scored("judge", [[0.5]] * 6, "last"), Threshold(0.5)) is None
    plain = read_data(write_rows(tmp_path / "plain", [{"problem": "P", "steps": ["a"]}]))
    assert best_of_n(plain, Scored("judge", [[0.5]], "last")) is None


def test_the_threshold_is_fitted_where_f1_is_highest(tmp_path: Path) -> None:
    rows = [{**PROCESS_BENCH, "id": i, "label": label} for i, label in enumerate((1, 0, -1, -1))]
    data = read_data(write_rows(tmp_path / "data.jsonl", rows))
    scored = Scored("judge", [[0.9, 0.3, 0.8], [0.2, 0.9, 0.9], [0.6, 0.7, 0.8], [0.5, 0.9, 0.9]], "min")
    threshold = fit_threshold(data, scored.rewards)
    assert 0.3 < threshold <= 0.5
    result = step_quality(data, scored, Threshold(threshold, data.name))
    assert result is not None
    assert (result.f1.value.value, result.sample.traces, result.sample.erroneous) == (1.0, 4, 2)


def test_the_step_auc_is_over_all_steps(tmp_path: Path) -> None:
    data = read_data(write_rows(tmp_path / "data.jsonl", [PROCESS_BENCH]))
    result = step_quality(data, Scored("judge", [[0.9, 0.2, 0.95]], "min"), Threshold(0.5))
    assert result is not None
    assert result.auc.value.value == 0.5  # the right step above one of the two wrong ones
