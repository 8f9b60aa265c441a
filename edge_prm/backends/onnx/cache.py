"""Keys and values of one sequence, in the memory of the device that runs the graph.

ONNX Runtime's attention writes new keys and values into the very buffer that holds the old ones when input and output
are bound to one address: so forgetting tokens is a change of offset, and a run copies nothing.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_prm.backends.onnx.failures import failed
from edge_prm.backends.onnx.providers import Placement, check_placed, new_session
from edge_prm.manifest import Architecture

_RESIZE = "resize_fp16.onnx"
"""past `[b, heads, capacity, d]`, keep `[1]`, pads `[8]` -> past[:, :, :keep] followed by zeros. Written by
edge_prm_export.onnx.resize."""


RESERVED_BYTES = 256 << 20
"""Address space of a sequence on a CPU. Memory that no token was written to takes no room, and a sequence that has to
move when it grows takes as long for that as for a step of 40 tokens."""


class Cache(Protocol):
    """Room for `capacity` tokens, of which the caller knows how many are in use."""

    @property
    def capacity(self) -> int:
        """Tokens that fit."""

    def bind(self, binding: Any) -> None:
        """Bind `past_*` and `present_*` of an onnxruntime.IOBinding to this memory."""

    def resized(self, capacity: int, keep: int) -> Cache:
        """A second cache with room for `capacity` tokens that begins with the first `keep` of this one.

        DeviceMemoryError where there is no room for it; this cache is then as it was.
        """


class HostCache:
    """One array in the memory of the process, `[2 * layers, 1, kv_heads, capacity, head_dim]`."""

    def __init__(self, shape: Architecture, capacity: int, dtype: npt.DTypeLike = np.float32) -> None:
        self._shape = shape
        with _memory_for(shape, capacity, np.dtype(dtype).itemsize, "cpu"):
            self._planes = _reserved((2 * shape.layers, 1, shape.kv_heads, capacity, shape.head_dim), np.dtype(dtype))

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return int(self._planes.shape[3])

    def bind(self, binding: Any) -> None:
        """Bind inputs and outputs to the array."""
        for name, plane in zip(plane_names(self._shape.layers), self._planes, strict=True):
            where = ("cpu", 0, plane.dtype.type, plane.shape, plane.ctypes.data)
            binding.bind_input(f"past_{name}", *where)
            binding.bind_output(f"present_{name}", *where)

    def resized(self, capacity: int, keep: int) -> HostCache:
        """A copy of the first `keep` tokens."""
        other = HostCache(self._shape, capacity, self._planes.dtype)
        other._planes[..., :keep, :] = self._planes[..., :keep, :]
        return other


def reserved_tokens(shape: Architecture) -> int:
    """The tokens that fit into RESERVED_BYTES, in float32."""
    return RESERVED_BYTES // _bytes_of(shape, 1, np.dtype(np.float32).itemsize)


def _reserved(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array whose memory is taken page by page, as it is written; MemoryError where there is no room for it."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    try:
        pages = _pages(size)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(str(error)) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a large page for each head would hold hundreds of tokens
        with suppress(OSError):
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def _pages(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a forked child has its own


class DeviceCache:
    """A fp16 tensor for each layer's keys and values, allocated and copied by the device itself."""

    def __init__(self, shape: Architecture, capacity: int, resizer: Resizer, batch: int = 1) -> None:
        self._shape = shape
        self._capacity = capacity
        self._resizer = resizer
        self._batch = batch
        size = (batch, shape.kv_heads, capacity, shape.head_dim)
        with self._memory():
            self._planes = [resizer.allocate(size) for _ in plane_names(shape.layers)] if capacity else []

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self._capacity

    def bind(self, binding: Any) -> None:
        """Bind inputs and outputs to the tensors."""
        for name, plane in zip(plane_names(self._shape.layers), self._planes, strict=True):
            binding.bind_ortvalue_input(f"past_{name}", plane)
            binding.bind_ortvalue_output(f"present_{name}", plane)

    def resized(self, capacity: int, keep: int) -> DeviceCache:
        """A copy of the first `keep` tokens, made on the device."""
        other = DeviceCache(self._shape, capacity, self._resizer)
        if keep:
            with other._memory():
                for old, new in zip(self._planes, other._planes, strict=True):
                    self._resizer.copy(old, new, keep, capacity)
        return other

    def _memory(self) -> Any:
        return _memory_for(self._shape, self._batch * self._capacity, 2, self._resizer.device)


class Resizer:
    """Allocates and copies fp16 tensors in a device's memory, by a graph of two nodes that runs there."""

    def __init__(self, placement: Placement) -> None:
        """BackendError where the device cannot be used."""
        import onnxruntime

        self._placement = placement.in_memory
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # no threads of its own, which a forked child would not have
        graph = (resources.files("edge_prm.backends.onnx") / _RESIZE).read_bytes()
        try:
            self._session = new_session(graph, options, self._placement)
        except Exception as error:  # the engine's exceptions have no common base of their own
            raise failed(f"ONNX Runtime cannot use {self.device}", error) from error
        check_placed(self._session, self._placement)

    @property
    def device(self) -> str:
        """The device whose memory it is."""
        return self._placement.device

    def allocate(self, shape: tuple[int, ...]) -> Any:
        """An onnxruntime.OrtValue, fp16, with no values yet."""
        import onnxruntime

        place = (self._placement.memory, self._placement.index)
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float16, *place)

    def copy(self, source: Any, target: Any, keep: int, capacity: int) -> None:
        """Copy the first `keep` tokens of `source` into `target`, which has room for `capacity`."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("past", source)
        binding.bind_cpu_input("keep", np.array([keep], dtype=np.int64))
        binding.bind_cpu_input("pads", np.array([0, 0, 0, 0, 0, 0, capacity - keep, 0], dtype=np.int64))
        binding.bind_ortvalue_output("resized", target)
        self._session.run_with_iobinding(binding)


def try_device(placement: Placement) -> None:
    """BackendError where a device cannot allocate a small tensor and compute with it."""
    resizer = Resizer(placement)
    try:
        source, target = resizer.allocate((1, 1, 4, 8)), resizer.allocate((1, 1, 8, 8))
        resizer.copy(source, target, 2, 8)
    except Exception as error:  # the engine's exceptions have no common base of their own
        raise failed(f"ONNX Runtime cannot use {resizer.device}", error) from error


def plane_names(layers: int) -> list[str]:
    """Names of the tensors of keys and values, in the order of the planes."""
    return [f"{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]


@contextmanager
def _memory_for(shape: Architecture, tokens: int, value_bytes: int, device: str) -> Iterator[None]:
    """Turn a failure to allocate or fill the keys and values of `tokens` into an error with their size."""
    try:
        yield
    except Exception as error:  # the engine's exceptions have no common base of their own
        size = _bytes_of(shape, tokens, value_bytes)
        what = f"a KV cache of {tokens} tokens ({size / 1e9:.2f} GB on {device}) cannot be made"
        raise failed(what, error) from error


def _bytes_of(shape: Architecture, tokens: int, value_bytes: int) -> int:
    """Of the keys and values of `tokens`."""
    return 2 * shape.layers * shape.kv_heads * tokens * shape.head_dim * value_bytes
