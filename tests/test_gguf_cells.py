"""Cells of llama.cpp: shared by branches and candidates, grown and given back, and safe when a run is stopped."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import need_engine
from test_export import PROMPT, STEPS
from trajectories import run_threads

import edge_prm
from edge_prm.backends import Backend, EngineOptions, Model, load_model
from edge_prm.backends.gguf import sequences as limits
from edge_prm.backends.gguf.context import Context
from edge_prm.backends.gguf.llama_cpp import StopFlag
from edge_prm.bundle import open_bundle
from edge_prm.encode import Encoder
from edge_prm.errors import BackendError
from edge_prm.manifest import read_manifest
from edge_prm.trajectory import Trajectory

need_engine("gguf")
from test_gguf import IDS, TOLERANCES  # noqa: E402


def test_candidates_cost_the_prompt_once(bundle_of: Callable[..., Path]) -> None:
    prompt = PROMPT * 4
    candidates = [f"{index} eggs are left.\n\nShe sells {index} of them." for index in range(16)]
    folder = bundle_of("sigmoid", "q8_0")
    encoder = Encoder(folder / "tokenizer.json", read_manifest(folder))
    tokens = len(encoder.encode(Trajectory.of(prompt, ["x"])).ids)
    own = [len(encoder.encode(Trajectory.of(prompt, candidate)).ids) - tokens for candidate in candidates]
    with edge_prm.load(bundle_of("sigmoid", "q8_0")) as prm:
        ranking = prm.rank(prompt, candidates)
        alone = []
        for candidate in candidates:
            with prm.session(prompt) as session:
                for step in candidate.split("\n\n"):
                    session.push(step, last=step.startswith("She"))
                alone.append(session.rewards)
    assert tokens <= ranking.computed <= tokens + sum(own) + 2 * len(candidates)
    assert np.abs(np.subtract(ranking.rewards, alone)).max() <= TOLERANCES["q8_0"]


def test_branches_share_cells_and_the_context_grows(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 256)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    expected = model.start().extend(IDS, [199])[0]
    gc.collect()
    trunk = model.start()
    trunk.extend(IDS[:199], [])
    branches = [trunk.branch() for _ in range(20)]
    rewards = [branch.extend(IDS[199:], [0])[0] for branch in branches]
    assert model.cells == 256
    rewards.append(trunk.extend(IDS[199:], [0])[0])
    other = model.start()
    other.extend(IDS, [])
    assert model.cells == 512
    for branch in branches[:3]:
        branch.trim(199)
        rewards.append(branch.extend(IDS[199:], [0])[0])
    assert np.abs(np.array(rewards) - expected).max() <= TOLERANCES["f32"]
    model.close()


def test_sequences_come_back_when_nobody_holds_them(bundle_of: Callable[..., Path]) -> None:
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    for _ in range(3 * limits.MAX_SEQUENCES):
        model.start().extend(IDS[:4], [3])
        gc.collect(0)
    held: list[Backend] = []
    with pytest.raises(BackendError, match=f"{limits.MAX_SEQUENCES} sequences are open"):
        open_many(model, held)
    held[0].close()
    model.start().extend(IDS[:4], [3])
    model.close()
    with pytest.raises(BackendError, match="closed"):
        held[1].extend(IDS[:4], [3])
    with pytest.raises(BackendError, match="closed"):
        held[1].branch()


def test_as_many_sessions_as_llama_cpp_allows_can_be_open_after_a_score(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SEQUENCES", 8)
    with edge_prm.load(bundle_of("sigmoid", "f32"), threads=1) as prm:
        expected = prm.score(PROMPT, STEPS[:1]).rewards  # it leaves an idle sequence
        sessions = [prm.session(PROMPT) for _ in range(8)]
        pushed = [session.push(STEPS[0], last=True) for session in sessions]
        assert pushed == pytest.approx(expected * 8, abs=TOLERANCES["f32"])
        with pytest.raises(BackendError, match="8 sequences are open; close a session"):
            prm.score(PROMPT, STEPS)
        sessions[0].close()
        assert len(prm.score(PROMPT, STEPS).rewards) == len(STEPS)


def test_a_context_is_small_again_when_a_long_text_is_forgotten(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    kept = model.start()
    kept.extend(IDS[:150], [])
    expected = kept.branch().extend(IDS[150:], [49])[0]
    long = model.start()
    long.extend(np.resize(IDS, 4000), [3999])
    assert 4096 <= model.cells <= 4608
    long.close()  # without another call: an application that is idle must not keep the memory
    assert model.cells == 512
    assert abs(kept.extend(IDS[150:], [49])[0] - expected) <= TOLERANCES["f32"]
    model.close()


def test_a_context_grows_once_for_a_long_text_and_never_holds_two(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    made: list[int] = []
    make = Context._make

    def counted(self: Context, cells: int, sequences: int) -> object:
        assert self._handles.context is None
        made.append(cells)
        return make(self, cells, sequences)

    monkeypatch.setattr(Context, "_make", counted)
    model.start().extend(np.resize(IDS, 3000), [2999])
    assert made == [3072]
    model.close()


def test_without_memory_for_more_cells_what_was_held_stays(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    held = model.start()
    held.extend(IDS[:100], [])
    expected = held.branch().extend(IDS[100:150], [49])[0]
    make = Context._make

    def full(self: Context, cells: int, sequences: int) -> object:
        if cells > 512:
            raise BackendError("llama.cpp has no memory")
        return make(self, cells, sequences)

    monkeypatch.setattr(Context, "_make", full)
    with pytest.raises(BackendError, match="no memory"):
        model.start().extend(np.resize(IDS, 1000), [])
    gc.collect()
    assert abs(held.extend(IDS[100:150], [49])[0] - expected) <= TOLERANCES["f32"]
    model.close()


def test_a_run_that_is_stopped_leaves_the_sequence_usable(bundle_of: Callable[..., Path]) -> None:
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    sequence = model.start()
    sequence.extend(IDS[:100], [])
    expected = sequence.branch().extend(IDS[100:], [99])[0]
    stop = StopFlag()
    stop.set()
    with pytest.raises(BackendError, match="failed at token 100"):
        model._run(sequence.sequence, IDS[100:], 100, [99], 0, stop)  # type: ignore[attr-defined]
    model.run(sequence.sequence, IDS[:50], 100, [])  # type: ignore[attr-defined]  # as if interrupted after it
    assert abs(sequence.extend(IDS[100:], [99])[0] - expected) <= TOLERANCES["f32"]
    model.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_what_goes_wrong_in_a_callback_comes_out_of_the_run(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    sequence = model.start()
    expected = sequence.extend(IDS[:20], [19])[0]
    sequence.trim(0)

    def fail(tensor: int) -> bytes:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(model._context.tap, "_name", fail)  # type: ignore[attr-defined]
        with pytest.raises(kind):
            sequence.extend(IDS[:20], [19])
    assert sequence.offset == 0
    assert abs(sequence.extend(IDS[:20], [19])[0] - expected) <= TOLERANCES["f32"]
    model.close()


def open_many(model: Model, held: list[Backend]) -> None:
    for _ in range(limits.MAX_SEQUENCES + 1):
        held.append(model.start())
        held[-1].extend(IDS[:4], [3])


def test_threads_take_turns(bundle_of: Callable[..., Path]) -> None:
    with edge_prm.load(bundle_of("sigmoid", "f32"), threads=1) as prm:
        expected = prm.score(PROMPT, STEPS).rewards

        def work(worker: int) -> None:
            for count in range(1, len(STEPS) + 1):
                rewards = prm.score(f"{worker}{PROMPT}", STEPS[:count]).rewards
                assert len(rewards) == count
            with prm.session(PROMPT) as session:
                found = [session.push(step, last=step is STEPS[-1]) for step in STEPS]
            assert np.abs(np.subtract(found, expected)).max() <= TOLERANCES["f32"]

        run_threads(work, 4)
