"""The clock: only the computation is timed, with a clock that counts computed tokens in place of seconds."""

from __future__ import annotations

import pytest
from fake_backend import FakeModel

from edge_prm.manifest import Architecture
from edge_prm.prm import PRM
from edge_prm_bench.speed import latency
from edge_prm_bench.speed.device import Throttling


@pytest.fixture
def token_clock(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by a second for each token that is computed, and for nothing else."""
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(fake.computed))


@pytest.mark.usefixtures("token_clock")
def test_ranking_is_timed_without_its_preparation(prm: PRM) -> None:
    rank = latency.measure_rank(prm)
    assert rank is not None
    assert rank.alone.best == rank.alone.worst == rank.one_by_one  # each text once, and no other
    assert rank.shared.best == rank.shared.worst == rank.computed
    assert abs(rank.computed - rank.needed) <= rank.candidates
    assert rank.shared.runs == rank.alone.runs >= 5
    assert rank.faster.p50 == pytest.approx(rank.one_by_one / rank.computed)


@pytest.mark.usefixtures("token_clock")
def test_prefill_and_pushes_are_timed_alone(prm: PRM) -> None:
    prefill = latency.measure_prefill(prm, 100)
    assert (prefill.timing.best, prefill.timing.worst, prefill.timing.runs) == (100, 100, 5)
    push = latency.measure_pushes(prm, 20)
    assert push is not None
    assert push.first.runs == push.last.runs == 5
    assert push.last.worst <= push.tokens + push.computed_beyond_new + 2


def test_a_timing_is_ordered_statistics_of_its_runs() -> None:
    measured = latency.timing([3.0, 1.0, 2.0, 4.0, 5.0])
    assert (measured.best, measured.p50, measured.worst, measured.runs) == (1.0, 3.0, 5.0, 5)
    assert measured.p95 == pytest.approx(4.8)


def test_a_slower_device_or_a_thermal_event_is_throttling() -> None:
    assert Throttling(800, 790, None).sentence.startswith("The device kept its speed")
    assert Throttling(800, 600, None).slowed
    assert "3 thermal events" in Throttling(800, 800, 3).sentence


def test_the_work_in_a_token_is_that_of_the_published_model() -> None:
    """2.62 GOP for the 1.5B: 28 layers of 1536 x 2048, 1536 x 1536 and three of 1536 x 8960."""

    class Manifest:
        architecture = Architecture("qwen2", 28, 1536, 12, 2, 128, 151936, 8960)

    assert latency.gop_per_token(Manifest()) == pytest.approx(2.62, abs=0.005)  # type: ignore[arg-type]
