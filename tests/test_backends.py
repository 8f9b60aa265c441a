"""One contract for every backend: the same rewards in any pieces, on any branch, behind any trim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeModel, reward_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_prm.backends import EngineOptions, Model, load_model
from edge_prm.backends.onnx import rows
from edge_prm.backends.onnx.cache import HostCache
from edge_prm.backends.onnx.native import CHUNK_TOKENS, OnnxBackend
from edge_prm.bundle import open_bundle
from edge_prm.errors import BackendError, InputError
from edge_prm.prm import load

LENGTH = 70
IDS = np.random.default_rng(5).integers(0, 400, LENGTH)
TOLERANCES = {
    "fake": 0.0, "onnx-int8": 0.0, "onnx-fp32": 1e-5, "onnx-fp16": 0.0, "onnx-w8a16": 0.0, "onnx-int4": 0.0,
    "onnx-w4a16": 0.0, "gguf-f32": 5e-3, "gguf-q8_0": 0.03,
    "optimum-int8": 0.03, "optimum-fp32": 1e-5,
}  # fmt: skip
"""llama.cpp multiplies runs of different lengths with different kernels, on a KV cache in fp16; what was measured here,
times three. These tiny models of random weights are sharper than trained ones."""
CUTS = st.sets(st.integers(1, LENGTH - 1), max_size=12)
few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=sorted(TOLERANCES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, request: pytest.FixtureRequest) -> Iterator[Model]:
    if name == "fake":
        yield FakeModel()
        return
    bundle_of: Callable[..., Path] = request.getfixturevalue("bundle_of")
    folder = bundle_of("sigmoid", name if name.startswith("optimum") else name.split("-")[1])
    loaded = load_model(open_bundle(folder), EngineOptions(threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def whole(model: Model) -> np.ndarray:
    """The reward at every token, in one go."""
    return model.start().extend(IDS, range(LENGTH))


@few
@given(cuts=CUTS)
def test_rewards_are_the_same_in_any_pieces(model: Model, name: str, whole: np.ndarray, cuts: set[int]) -> None:
    backend = model.start()
    found = []
    for start, end in pieces(cuts):
        rewards = backend.extend(IDS[start:end], range(end - start))
        assert rewards.dtype == np.float32
        assert rewards.shape == (end - start,)
        assert backend.offset == end
        found.append(rewards)
    assert np.abs(np.concatenate(found) - whole).max() <= TOLERANCES[name]
    assert LENGTH <= backend.computed <= LENGTH + 2 * rows.most_missing() * (len(cuts) + 1)


def test_rewards_are_the_same_after_a_piece_of_any_length(model: Model, name: str, whole: np.ndarray) -> None:
    """Kernels that work in blocks of rows may round the lone row of a last block in another way."""
    different = []
    for length in range(1, LENGTH + 1):
        reward = model.start().extend(IDS[:length], [length - 1])[0]
        if abs(reward - whole[length - 1]) > TOLERANCES[name]:
            different.append(length)
    assert different == []


def pieces(cuts: set[int]) -> Iterator[tuple[int, int]]:
    edges = [0, *sorted(cuts), LENGTH]
    return pairwise(edges)


@few
@given(positions=st.sets(st.integers(0, LENGTH - 1), max_size=6))
def test_a_reward_does_not_depend_on_what_else_is_read(
    model: Model, name: str, whole: np.ndarray, positions: set[int]
) -> None:
    read_at = sorted(positions)
    rewards = model.start().extend(IDS, read_at)
    assert rewards.shape == (len(read_at),)
    assert (np.abs(rewards - whole[read_at]) <= TOLERANCES[name]).all()


@few
@given(to=st.integers(0, LENGTH - 1))
def test_trim_forgets_what_stood_behind(model: Model, name: str, whole: np.ndarray, to: int) -> None:
    backend = model.start()
    backend.extend(np.concatenate([IDS[:to], IDS[::-1]]), [])
    backend.trim(to)
    assert backend.offset == to
    rewards = backend.extend(IDS[to:], range(LENGTH - to))
    assert np.abs(rewards - whole[to:]).max() <= TOLERANCES[name]


@few
@given(at=st.integers(1, LENGTH - 1))
def test_branches_do_not_touch_each_other(model: Model, name: str, whole: np.ndarray, at: int) -> None:
    trunk = model.start()
    trunk.extend(IDS[:at], [])
    branch = trunk.branch()
    assert (branch.offset, branch.computed) == (at, 0)
    branch.extend(IDS[::-1], [])
    again = trunk.branch()
    trunk.extend(IDS[::-1], [])
    rewards = again.extend(IDS[at:], range(LENGTH - at))
    assert np.abs(rewards - whole[at:]).max() <= TOLERANCES[name]


@pytest.mark.parametrize("to", [-1, 5])
def test_trim_beyond_what_is_held_is_an_error(model: Model, to: int) -> None:
    backend = model.start()
    backend.extend(IDS[:4], [])
    with pytest.raises(BackendError, match=f"cannot trim to {to} tokens: the cache holds 4"):
        backend.trim(to)
    assert backend.offset == 4


def test_a_text_of_one_token_has_a_reward(model: Model, name: str, whole: np.ndarray) -> None:
    backend = model.start()
    assert abs(backend.extend(IDS[:1], [0])[0] - whole[0]) <= TOLERANCES[name]
    assert backend.offset == 1


def test_close_frees_the_cache(model: Model) -> None:
    backend = model.start()
    backend.extend(IDS, [])
    backend.close()
    assert backend.offset == 0


def test_rewards_spread(model: Model, whole: np.ndarray) -> None:
    """Else the equalities above would say little."""
    assert ((whole >= 0) & (whole <= 1)).all()
    assert whole.std() > 0.1


def test_a_model_that_is_closed_says_so(bundle_of: Callable[..., Path]) -> None:
    loaded = load_model(open_bundle(bundle_of()), EngineOptions(device="cpu"))
    backend = loaded.start()
    loaded.close()
    with pytest.raises(BackendError, match="closed"):
        backend.extend(IDS, [0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"device": device}, f"device {device!r} is not one of auto, cpu, gpu, cuda (or cuda:1, the second card)")
          for device in ("tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cpu:0", "gpu:1", "", 3)),
        *(({"device": device}, "which runs on the CPU; for a GPU export with --device cuda or --gguf (--int8 --device "
           "cuda gives recipe w8a16)") for device in ("gpu", "cuda", "cuda:1")),
        ({"provider": "cuda"}, "which runs on the CPU; for a GPU export with --device cuda or --gguf"),
        ({"provider": "CUDAExecutionProvider"}, "which runs on the CPU; for a GPU export"),
        ({"provider": "coreml", "device": "cpu"}, "provider is 'coreml' and device is 'cpu'; choose one of them"),
        *(({"provider": provider}, f"provider is {provider!r}; give the name of an execution") for provider in ("", 3)),
        *(({"threads": threads}, f"threads is {threads!r}") for threads in (0, -1, 1.5, "2", True)),
        *(({"gpu_layers": layers}, f"gpu_layers is {layers!r}") for layers in (-1, 1.5, "2", True)),
        ({"gpu_layers": 3}, "which runs on the CPU"),
        ({"options": 3}, "engine options are 3"),
        ({"options": {"n_ctx": 5}}, "ONNX Runtime has no option 'n_ctx'; it has enable_cpu_mem_arena, "),
        ({"options": {"add_session_config_entry": 5}}, "ONNX Runtime has no option 'add_session_config_entry'"),
        ({"options": {"inter_op_num_threads": "many"}}, "does not take 'many' for option 'inter_op_num_threads'"),
        ({"options": {"sessoin.x": "1"}}, "no option 'sessoin.x'; session config entries begin with session."),
        ({"options": {"provider.x": "1"}}, "provider.x is an option of an execution provider, and the CPU"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(bundle_of: Callable[..., Path], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(open_bundle(bundle_of()), EngineOptions(**options))
    assert said in str(caught.value)


def test_options_of_onnx_runtime_pass_through(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    prefix = str(tmp_path / "profile")
    options = {"enable_profiling": True, "profile_file_prefix": prefix, "session.intra_op.allow_spinning": 0}
    with load(bundle_of(), threads=1, engine_options=options) as prm:
        prm.score("Q", ["a", "b"])
        prm.model._session.engine.end_profiling()  # type: ignore[attr-defined]
    assert [path.name.startswith("profile") for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_ctx": 5}, "llama.cpp has no option 'n_ctx'"),
        ({"flash": 1}, "llama.cpp has no option 'flash'"),
        ({"type_k": "f32"}, "llama.cpp does not take 'f32' for option 'type_k'"),
    ],
)
def test_a_bad_option_of_llama_cpp_is_named(bundle_of: Callable[..., Path], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(bundle_of("sigmoid", "f32"), engine_options=options)


def test_options_of_llama_cpp_pass_through(bundle_of: Callable[..., Path]) -> None:
    """A KV cache in fp32 gives other bits than one in fp16, and close rewards."""
    folder = bundle_of("sigmoid", "f32")
    rewards = []
    for options in ({}, {"type_k": 0, "type_v": 0}):
        with load(folder, threads=1, device="cpu", engine_options=options) as prm:
            rewards.append(prm.score("What is 2 + 2?", ["Two and two is four.", "So 4."]).rewards)
    assert rewards[0] != rewards[1]
    assert rewards[0] == pytest.approx(rewards[1], abs=TOLERANCES["gguf-f32"])


# the CPU engine's handling of pieces, with the engine left out


class NoEngine:
    """What OnnxBackend asks of OnnxModel; rewards are hashes of the ids that its cache rows stand for."""

    context_length = 4096
    chunk_tokens = CHUNK_TOKENS

    class architecture:
        layers, kv_heads, head_dim = 1, 1, 2

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.fails = False

    def capacity_for(self, tokens: int) -> int:
        return -(-tokens // 256) * 256  # nothing ahead: sequences of the tests grow

    def cache(self, capacity: int) -> HostCache:
        return HostCache(self.architecture, capacity)  # type: ignore[arg-type]

    def run(self, ids: np.ndarray, read_at: np.ndarray, offset: int, cache: HostCache) -> np.ndarray:
        if self.fails:
            self.fails = False
            raise BackendError("ONNX Runtime failed")
        assert len(ids) >= 2
        assert len(read_at) >= 2
        assert offset + len(ids) <= cache.capacity
        assert offset % rows.ROW_BLOCK == 0
        self.runs.append(len(ids))
        cells = cache._planes[0, 0, 0, :, 0]
        cells[offset : offset + len(ids)] = ids
        held = cells[: offset + len(ids)].astype(np.int64)
        return np.array([reward_of(held[: offset + at + 1]) for at in read_at], dtype=np.float32)


BLOCKS = pytest.mark.parametrize("block", [1, 4], ids=["x86", "arm64"])


@BLOCKS
@given(ids=st.lists(st.integers(0, 2), min_size=2, max_size=12), cuts=st.lists(st.integers(1, 11), max_size=4))
def test_the_cpu_backend_gives_the_same_rewards_in_any_pieces(block: int, ids: list[int], cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "ROW_BLOCK", block)
        same_rewards_in_pieces(ids, cuts)


def same_rewards_in_pieces(ids: list[int], cuts: list[int]) -> None:
    whole = np.array(ids, dtype=np.int64)
    edges = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    backend = OnnxBackend(NoEngine())  # type: ignore[arg-type]
    found: list[float] = []
    for start, end in pairwise(edges):
        found += backend.extend(whole[start:end], range(end - start)).tolist()
        assert backend.offset == end
    assert found == [float(reward_of(whole[: at + 1])) for at in range(len(ids))]
    assert len(ids) <= backend.computed <= len(ids) + 2 * rows.most_missing() * len(edges)


def test_the_cpu_backend_trims_branches_and_grows() -> None:
    backend = OnnxBackend(NoEngine())  # type: ignore[arg-type]
    ids = np.arange(1300)
    assert backend.extend(ids, [1299])[0] == reward_of(ids)
    backend.trim(700)
    branch = backend.branch()
    other = np.concatenate([ids[:700], ids[:5]])
    assert branch.extend(ids[:5], [4])[0] == reward_of(other)
    assert backend.offset == 700
    assert backend.extend(ids[700:701], [0])[0] == reward_of(ids[:701])
    assert branch.computed == 5 + rows.missing_tokens(5)


def test_the_cpu_backend_holds_what_it_held_when_the_engine_fails() -> None:
    model = NoEngine()
    for size in (1, 2, 5):
        backend = OnnxBackend(model)  # type: ignore[arg-type]
        backend.extend(np.arange(4), [3])
        model.fails = True
        with pytest.raises(BackendError):
            backend.extend(np.arange(size), [size - 1])
        assert backend.offset >= 4
        backend.trim(4)
        assert backend.extend(np.arange(size), [size - 1])[0] == reward_of(
            np.concatenate([np.arange(4), np.arange(size)])
        )


def test_a_lone_token_is_never_run_alone() -> None:
    backend = OnnxBackend(NoEngine())  # type: ignore[arg-type]
    assert backend.extend(np.array([7]), [0])[0] == reward_of(np.array([7]))
    assert backend.offset == 1
    assert backend.extend(np.array([8]), [0])[0] == reward_of(np.array([7, 8]))


@BLOCKS
@given(first=st.integers(1, 1200), second=st.integers(1, 40))
def test_no_run_ends_in_a_lone_row_or_in_an_incomplete_block(block: int, first: int, second: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "ROW_BLOCK", block)
        model = NoEngine()
        backend = OnnxBackend(model)  # type: ignore[arg-type]
        for size in (first, second):
            backend.extend(np.zeros(size, dtype=np.int64), [size - 1])
    assert backend.offset == first + second
    assert sum(model.runs) == backend.computed <= backend.offset + 12 * block
    assert all(
        1 < size < CHUNK_TOKENS + 2 * block and size % rows.QUERY_BLOCK != 1 and size % block == 0
        for size in model.runs
    )


@BLOCKS
def test_no_run_reads_a_lone_row_or_an_incomplete_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer is computed for the rows that are read."""
    monkeypatch.setattr(rows, "ROW_BLOCK", block)
    read = [reads + rows.missing_reads(reads) for reads in range(10)]
    assert read == [2, 2, *range(2, 10)] if block == 1 else read == [4] * 5 + [8] * 4 + [12]
