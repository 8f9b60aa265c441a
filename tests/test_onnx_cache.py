"""Keys and values of bundles with fp16 activations: allocated, grown and branched by the device itself.

The same code runs on the CPU provider, which is what these tests use.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_prm
from edge_prm.backends import EngineOptions, load_model
from edge_prm.backends.onnx import cache as caches
from edge_prm.backends.onnx.cache import DeviceCache, HostCache, Resizer
from edge_prm.backends.onnx.native import OnnxBackend, OnnxModel
from edge_prm.backends.onnx.providers import CUDA, Placement
from edge_prm.bundle import open_bundle
from edge_prm.errors import BackendError, DeviceMemoryError
from edge_prm.manifest import Architecture
from edge_prm_bench.speed import profile

pytest.importorskip("onnxruntime", reason='this needs the engine: pip install "edge-prm[cpu]"')

SHAPE = Architecture("qwen2", 3, 64, 4, 2, 8, 400, 128)
IDS = np.random.default_rng(3).integers(0, 400, 500)


@pytest.fixture(scope="module")
def resizer() -> Resizer:
    return Resizer(Placement())


def fill(cache: DeviceCache, seed: int) -> list[np.ndarray]:
    """Write random values into every plane, and return them."""
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal((1, 2, cache.capacity, 8)).astype(np.float16) for _ in cache._planes]
    for plane, value in zip(cache._planes, values, strict=True):
        plane.update_inplace(value)
    return values


def read(cache: DeviceCache) -> list[np.ndarray]:
    return [np.array(plane.numpy()) for plane in cache._planes]


@pytest.mark.parametrize(("capacity", "keep"), [(256, 100), (512, 256), (64, 64), (64, 1), (1024, 0)])
def test_a_resized_cache_begins_with_the_tokens_that_are_kept(resizer: Resizer, capacity: int, keep: int) -> None:
    cache = DeviceCache(SHAPE, 256, resizer)
    before = fill(cache, 1)
    other = cache.resized(capacity, keep)
    assert other.capacity == capacity
    for old, new in zip(before, read(other), strict=True):
        assert new.shape == (1, 2, capacity, 8)
        assert (new[:, :, :keep] == old[:, :, :keep]).all()
        assert not keep or (new[:, :, keep:] == 0).all()


def test_a_branch_shares_no_memory_with_its_trunk(resizer: Resizer) -> None:
    trunk = DeviceCache(SHAPE, 256, resizer)
    before = fill(trunk, 1)
    fill(trunk.resized(256, 256), 2)
    assert all((old == new).all() for old, new in zip(before, read(trunk), strict=True))


def test_a_host_cache_keeps_the_same_tokens() -> None:
    cache = HostCache(SHAPE, 4, np.float16)
    cache._planes[:] = np.arange(4)[:, None]
    other = cache.resized(8, 3)
    assert (other._planes[..., :3, :] == np.arange(3)[:, None]).all()
    assert (other.capacity, other._planes.dtype) == (8, np.float16)


def test_an_empty_cache_holds_no_memory(resizer: Resizer) -> None:
    assert DeviceCache(SHAPE, 0, resizer)._planes == []


@pytest.fixture(scope="module")
def model(bundle_of: Callable[..., Path]) -> Any:
    loaded = load_model(open_bundle(bundle_of("sigmoid", "fp16")), EngineOptions(threads=1, device="cpu"))
    yield loaded
    loaded.close()


def test_the_model_of_a_bundle_for_gpus_has_device_caches(model: OnnxModel) -> None:
    assert isinstance(model.cache(4), DeviceCache)
    assert (model.device, model.on_gpu) == ("cpu", False)


def addresses(backend: OnnxBackend) -> list[int]:
    planes = backend._cache._planes  # type: ignore[attr-defined]
    return [plane.data_ptr() for plane in planes]


def test_a_run_and_a_trim_leave_the_cache_where_it_is(model: OnnxModel) -> None:
    backend = model.start()
    backend.extend(IDS[:100], [99])
    before = addresses(backend)
    assert len(before) == 2 * model.architecture.layers
    backend.extend(IDS[100:150], [49])
    backend.trim(20)
    backend.extend(IDS[20:60], [39])
    assert addresses(backend) == before


def test_a_sequence_that_grows_gives_the_bits_of_one_that_does_not(model: OnnxModel) -> None:
    whole = model.start().extend(IDS, range(len(IDS)))
    backend = model.start()
    grown = np.concatenate([backend.extend(IDS[at : at + 100], range(100)) for at in range(0, len(IDS), 100)])
    assert (grown == whole).all()
    assert backend._cache.capacity > 256


def test_a_closed_sequence_holds_no_memory_and_can_begin_again(model: OnnxModel) -> None:
    backend = model.start()
    first = backend.extend(IDS[:40], [39])
    backend.close()
    assert addresses(backend) == []
    assert backend.extend(IDS[:40], [39]) == first


def test_two_models_and_several_threads_do_not_touch_each_other(
    model: OnnxModel, bundle_of: Callable[..., Path]
) -> None:
    second = load_model(open_bundle(bundle_of("sigmoid", "fp16")), EngineOptions(threads=1, device="cpu"))
    expected = model.start().extend(IDS, range(len(IDS)))
    found: dict[int, bool] = {}

    def work(number: int) -> None:
        backend = (model, second)[number % 2].start()
        parts = [backend.extend(IDS[at : at + 50], range(50)) for at in range(0, 500, 50)]
        branch = backend.branch()
        branch.trim(100)
        branch.extend(IDS[:200], [])
        found[number] = bool((np.concatenate(parts) == expected).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert found == dict.fromkeys(range(4), True)


# memory that runs out


class NoMemory:
    """A device that has no memory for a cache: `allocate` or `copy` fails as the engine says it."""

    device = "cuda:0"

    def __init__(self, at: str, error: Exception) -> None:
        self._at, self._error = at, error

    def allocate(self, shape: tuple[int, ...]) -> object:
        if self._at == "allocate":
            raise self._error
        return object()

    def copy(self, *_: object) -> None:
        raise self._error


FULL = RuntimeError(
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : /core/framework/bfc_arena.cc:376 Failed to allocate memory for "
    "requested buffer of size 4096"
)


@pytest.mark.parametrize("error", [FULL, MemoryError("std::bad_alloc"), RuntimeError("CUDA failure 2: out of memory")])
def test_a_device_without_memory_for_a_cache_is_an_error_with_its_size(error: Exception) -> None:
    with pytest.raises(DeviceMemoryError) as caught:
        DeviceCache(SHAPE, 1_000_000, NoMemory("allocate", error))  # type: ignore[arg-type]
    said = str(caught.value)
    assert "a KV cache of 1000000 tokens (0.19 GB on cuda:0) cannot be made" in said
    assert "close sessions" in said
    assert isinstance(caught.value, (BackendError, MemoryError))


def test_a_cache_that_cannot_grow_stays_as_it_was() -> None:
    cache = DeviceCache(SHAPE, 256, NoMemory("copy", FULL))  # type: ignore[arg-type]
    planes = cache._planes
    with pytest.raises(DeviceMemoryError, match="a KV cache of 512 tokens"):
        cache.resized(512, 100)
    assert (cache.capacity, cache._planes) == (256, planes)


def test_a_sequence_that_has_no_memory_left_holds_what_it_held(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = model.start()
    backend.extend(IDS[:100], [99])
    with monkeypatch.context() as patch:
        patch.setattr(Resizer, "allocate", NoMemory("allocate", FULL).allocate)
        with pytest.raises(DeviceMemoryError):
            backend.extend(IDS[100:], [0])
    assert backend.offset == 100
    assert backend.extend(IDS[100:101], [0]) == model.start().extend(IDS[:101], [100])


# the profile: nothing of the cache is copied by a run


@pytest.mark.parametrize("recipe", ["fp16", "w8a16", "w4a16"])
def test_a_run_copies_no_cache_on_the_cpu_provider(bundle_of: Callable[..., Path], recipe: str) -> None:
    """Attention allocates its output and no more, so keys and values are written where they are; no other node reads or
    writes a tensor of the cache's shape, so no cast and no copy is inserted."""
    folder = bundle_of("sigmoid", recipe)
    shape = open_bundle(folder).manifest.architecture
    runs = profile.profile(folder, "cpu")
    attention = [run for run in runs if run.operator == "GroupQueryAttention"]
    assert len(attention) >= 3 * shape.layers
    for run in attention:
        output, *present = run.outputs
        assert run.inputs[1:3] == tuple(present)
        assert run.allocated_bytes <= 2 * np.prod(output) < 2 * 2 * np.prod(present[0])

    def is_cache(tensor: tuple[int, ...]) -> bool:
        return len(tensor) == 4 and (tensor[1], tensor[3]) == (shape.kv_heads, shape.head_dim)

    assert all(is_cache(tensor) for tensor in attention[0].outputs[1:])
    others = [run for run in runs if run.operator != "GroupQueryAttention"]
    assert not [run for run in others if any(is_cache(tensor) for tensor in (*run.inputs, *run.outputs))]
    assert profile.memcpy_nodes(folder, "cpu") == 0


def test_copies_between_devices_are_counted_once_for_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, operator: str) -> dict[str, Any]:
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "args": {"op_name": operator, "input_type_shape": [{"float16": [1, 2]}]},
        }

    events = [
        {"cat": "Session", "name": "model_run", "args": {}},
        event("Memcpy_token_1", "MemcpyFromHost"), event("Memcpy_token_1", "MemcpyFromHost"),
        event("Memcpy_token_2", "MemcpyToHost"), event("product", "MatMul"),
    ]  # fmt: skip
    runs = profile.node_runs(events)
    assert (runs[0].name, runs[0].inputs) == ("Memcpy_token_1", ((1, 2),))
    monkeypatch.setattr(profile, "profile", lambda *_: runs)
    assert profile.memcpy_nodes(Path("bundle"), "cuda") == 2


def test_the_profile_is_a_program(bundle_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    profile.main([str(bundle_of("sigmoid", "w4a16")), "--device", "cpu"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["memcpy_nodes"] == 0
    assert facts["operators"]["MatMulNBits"] > 0
    with pytest.raises(SystemExit):
        profile.main(["nowhere"])
    assert "nowhere is not an edge-prm bundle" in capsys.readouterr().err


# the graph in the package


def test_the_graph_in_the_package_is_what_the_exporter_writes() -> None:
    pytest.importorskip("onnx", reason='this needs the exporter: pip install "edge-prm[export]"')
    from edge_prm_export.onnx.resize import PATH, resize_model

    assert PATH.read_bytes() == resize_model()
    assert Path(caches.__file__).with_name(caches._RESIZE) == PATH


def test_the_wheel_takes_every_file_of_the_runtime_s_folder() -> None:
    root = Path(edge_prm.__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or later reads TOML")
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert "edge_prm" in build["wheel"]["packages"]
    assert "exclude" not in build["wheel"]
    ignored = subprocess.run(
        ["git", "check-ignore", "edge_prm/backends/onnx/resize_fp16.onnx"], cwd=root, capture_output=True, check=False
    )
    assert ignored.returncode != 0, "hatchling leaves out what git ignores"


# forks


def score_in_child(queue: Any, prm: edge_prm.PRM) -> None:
    try:
        queue.put(prm.score("Q", ["a", "b"]).rewards)
    except BackendError as error:
        queue.put(str(error))


@pytest.mark.skipif(not hasattr(sys, "getswitchinterval") or sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_forked_child_grows_a_cache_of_its_own_or_is_told_that_it_cannot(
    bundle_of: Callable[..., Path], on_gpu: bool
) -> None:
    context = multiprocessing.get_context("fork")
    with edge_prm.load(bundle_of("sigmoid", "fp16"), threads=2, device="cpu") as prm:
        rewards = prm.score("Q", ["a", "b"]).rewards
        if on_gpu:
            prm.model._session.placement = Placement(CUDA, {}, "cuda")  # type: ignore[attr-defined]
        queue = context.Queue()
        child = context.Process(target=score_in_child, args=(queue, prm))
        child.start()
        found = queue.get(timeout=120)
        child.join(60)
    if on_gpu:
        assert "load the bundle after the fork" in found
    else:
        assert found == rewards
