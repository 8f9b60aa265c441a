"""Keys and values in the memory of the process: what is reserved ahead takes no room, and no push moves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_prm.backends import EngineOptions, load_model
from edge_prm.backends.onnx import cache as caches
from edge_prm.backends.onnx.cache import HostCache
from edge_prm.backends.onnx.native import OnnxModel
from edge_prm.bundle import open_bundle
from edge_prm.errors import DeviceMemoryError
from edge_prm.manifest import Architecture

pytest.importorskip("onnxruntime", reason='this needs the engine: pip install "edge-prm[cpu]"')

SHAPE = Architecture("qwen2", 3, 64, 4, 2, 8, 400, 128)
IDS = np.random.default_rng(3).integers(0, 400, 300)


@pytest.fixture(scope="module")
def model(bundle_of: Callable[..., Path]) -> Iterator[OnnxModel]:
    loaded = load_model(open_bundle(bundle_of("sigmoid", "int8")), EngineOptions(threads=1, device="cpu"))
    yield loaded
    loaded.close()


def test_a_process_without_memory_for_a_cache_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(caches.mmap, "mmap", no_memory)
    with pytest.raises(DeviceMemoryError, match=r"a KV cache of 1024 tokens \(0\.00 GB on cpu\)"):
        HostCache(SHAPE, 1024)


def test_a_cache_takes_memory_as_tokens_are_written() -> None:
    resource = pytest.importorskip("resource", reason="only Unix counts a process's pages")
    page, shape = resource.getpagesize(), (56, 1, 2, 4096, 128)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system has no /proc")
    before = resident()
    planes = caches._reserved(shape, np.dtype(np.float32))
    planes[..., :100, :] = 1.0
    assert planes.nbytes > 200 << 20
    assert resident() - before < 32 << 20  # 5.7 MB, and what else the process took
    assert planes[3, 0, 1, 99, 5] == 1.0


def test_a_sequence_gets_only_what_it_needs_where_memory_is_short(model: OnnxModel) -> None:
    sequence = model.start()
    fits = HostCache.resized

    def resized(cache: HostCache, capacity: int, keep: int) -> HostCache:
        if capacity > 256:
            raise DeviceMemoryError("a KV cache cannot be made")
        return fits(cache, capacity, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostCache, "resized", resized)
        rewards = sequence.extend(IDS[:100], [99])
    assert sequence._cache.capacity == 256
    assert rewards[0] == model.start().extend(IDS[:100], [99])[0]


def test_a_push_does_not_move_the_cache(model: OnnxModel) -> None:
    sequence = model.start()
    sequence.extend(IDS[:100], [99])
    cache = sequence._cache
    assert cache.capacity >= model.context_length  # all of it fits into what is reserved
    sequence.extend(IDS[100:], [0])
    assert sequence._cache is cache
