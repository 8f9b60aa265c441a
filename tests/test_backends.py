"""One contract for every backend: the same rewards in any pieces, on any branch, behind any trim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeBackend, FakeModel, reward_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_prm.backends import DEVICES, MODULES, Backend, Model, load_model
from edge_prm.backends.gguf.model import GgufBackend
from edge_prm.backends.onnx.native import CHUNK_TOKENS, QUERY_BLOCK, OnnxBackend
from edge_prm.backends.onnx.traced import OptimumBackend
from edge_prm.bundle import open_bundle
from edge_prm.errors import BackendError, InputError

LENGTH = 70
IDS = np.random.default_rng(5).integers(0, 400, LENGTH)
TOLERANCES = {
    "fake": 0.0, "onnx-int8": 0.0, "onnx-fp32": 1e-5, "gguf-f32": 5e-3, "gguf-q8_0": 0.03,
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
    loaded = load_model(
        open_bundle(bundle_of("sigmoid", name if name.startswith("optimum") else name.split("-")[1])), "auto", 1, "auto"
    )
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
    assert LENGTH <= backend.computed <= LENGTH + 2 * (len(cuts) + 1)


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
    loaded = load_model(open_bundle(bundle_of()), "onnx", None, "cpu")
    backend = loaded.start()
    loaded.close()
    with pytest.raises(BackendError, match="closed"):
        backend.extend(IDS, [0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("vulkan", None, "auto"), "backend 'vulkan' is not known"),
        (("auto", None, "tpu"), "device 'tpu'"),
        *((("auto", threads, "auto"), f"threads is {threads!r}") for threads in (0, -1, 1.5, "2", True)),
    ],
)
def test_a_bad_option_is_named(bundle_of: Callable[..., Path], options: tuple, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(open_bundle(bundle_of()), *options)
    assert said in str(caught.value)


def test_every_backend_and_device_has_a_name() -> None:
    assert "auto" not in MODULES
    assert "auto" in DEVICES


def test_every_backend_has_the_members_of_the_contract() -> None:
    names = {name for name in vars(Backend) if not name.startswith("_")}
    assert {"offset", "extend", "trim", "close", "branch"} <= names
    for kind in (FakeBackend, OnnxBackend, GgufBackend, OptimumBackend):
        assert names <= set(dir(kind))


# the CPU engine's handling of pieces, with the engine left out


class NoEngine:
    """What OnnxBackend asks of OnnxModel; rewards are hashes of the ids that its cache rows stand for."""

    context_length = 4096

    class architecture:
        layers, kv_heads, head_dim = 1, 1, 2

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.fails = False

    def run(self, ids: np.ndarray, read_at: np.ndarray, offset: int, cache: np.ndarray) -> np.ndarray:
        if self.fails:
            self.fails = False
            raise BackendError("ONNX Runtime failed")
        assert len(ids) >= 2
        assert len(read_at) >= 2
        self.runs.append(len(ids))
        cache[0, 0, 0, offset : offset + len(ids), 0] = ids
        held = cache[0, 0, 0, : offset + len(ids), 0].astype(np.int64)
        return np.array([reward_of(held[: offset + at + 1]) for at in read_at], dtype=np.float32)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=12), st.lists(st.integers(1, 11), max_size=4))
def test_the_cpu_backend_gives_the_same_rewards_in_any_pieces(ids: list[int], cuts: list[int]) -> None:
    whole = np.array(ids, dtype=np.int64)
    edges = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    backend = OnnxBackend(NoEngine())  # type: ignore[arg-type]
    found: list[float] = []
    for start, end in pairwise(edges):
        found += backend.extend(whole[start:end], range(end - start)).tolist()
        assert backend.offset == end
    assert found == [float(reward_of(whole[: at + 1])) for at in range(len(ids))]
    assert len(ids) <= backend.computed <= len(ids) + len(edges)


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
    assert branch.computed == 5


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


@given(st.integers(1, 1200), st.integers(1, 40))
def test_no_run_ends_in_a_lone_row(first: int, second: int) -> None:
    model = NoEngine()
    backend = OnnxBackend(model)  # type: ignore[arg-type]
    for size in (first, second):
        backend.extend(np.zeros(size, dtype=np.int64), [size - 1])
    assert backend.offset == first + second
    assert sum(model.runs) == backend.computed
    assert backend.computed <= backend.offset + 2
    assert all(1 < size <= CHUNK_TOKENS and size % QUERY_BLOCK != 1 for size in model.runs)
