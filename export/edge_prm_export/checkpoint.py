"""Read a checkpoint without torch: config, safetensors (one file or shards; fp32, fp16, bf16), one tensor at a time.

Tensors are read, not mapped: pages of a mapped file count as the process's memory, and an export must fit in 3 GB.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError, CheckpointNotFoundError, UnsupportedArchitectureError
from edge_prm.source import checkpoint_sha256, find_checkpoint
from edge_prm_export.loadable import check_loadable, longest_context

HEAD_DIM_STEP = 16
"""ONNX Runtime's GroupQueryAttention takes heads whose size is a multiple of this."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes of a decoder, read from config.json."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context_length: int


@dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """A Qwen2 decoder's shapes and constants: what the native exporter must know."""

    rope_theta: float
    rms_norm_eps: float


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """A folder in the layout of transformers; tensors come as float32, in the names of the file."""

    def __init__(self, folder: Path, name: str, revision: str | None = None) -> None:
        self.folder = folder
        self.name = name
        self.revision = revision
        self.raw_config = read_json(folder / "config.json", name)
        self.model_type = str(self.raw_config.get("model_type"))
        self.config = _decoder_config(self.raw_config, name)
        self._entries = _index(folder, name)

    @cached_property
    def qwen2(self) -> Qwen2Config:
        """The config of a model that the native exporter knows; UnsupportedArchitectureError for any other."""
        return _qwen2_config(self.raw_config, self.config, self.name)

    @property
    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def tensor(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        """Return a tensor as float32; CheckpointError when its shape is not `shape` or it holds NaN or infinity."""
        if shape:
            self.check_shape(name, *shape)
        entry = self._entry(name)
        return self._read(name, entry, 0, entry.shape)

    def check_shape(self, name: str, *shape: int) -> None:
        """CheckpointError when a tensor's shape is not `shape`; nothing is read."""
        found = self._entry(name).shape
        if found != shape:
            raise CheckpointError(
                f"checkpoint {self.name}: {name} has shape {list(found)} and config.json asks for {list(shape)}"
            )

    def rows(self, name: str, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return rows `start` to `end` of a matrix as float32: for one too large to hold whole."""
        entry = self._entry(name)
        width = int(np.prod(entry.shape[1:]))
        return self._read(name, entry, start * width, (end - start, *entry.shape[1:]))

    def sha256(self) -> str:
        return checkpoint_sha256(self.folder)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"checkpoint {self.name}: tensor {name} is missing from its safetensors files")
        return self._entries[name]

    def _read(self, name: str, entry: _Entry, skip: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        count = int(np.prod(shape))
        offset = entry.start + skip * entry.dtype.itemsize
        values = np.fromfile(entry.path, dtype=entry.dtype, count=count, offset=offset)
        if len(values) != count:
            raise CheckpointError(f"{entry.path} ends before tensor {name} does; download it again")
        result = values.astype(np.float32, copy=False).reshape(shape)
        if not np.isfinite(result).all():
            raise CheckpointError(f"checkpoint {self.name}: tensor {name} holds NaN or infinity")
        return result


def open_checkpoint(source: str, revision: str | None = None, *, native: bool = True) -> Checkpoint:
    """Open a folder, a hub id (downloaded at `revision`), or one of the embedded `demo` and `demo-reference`.

    `native`: UnsupportedArchitectureError at once for a model that the native exporter does not know.
    """
    found = find_checkpoint(source, revision)
    check_loadable(found.folder, found.name)
    checkpoint = Checkpoint(found.folder, found.name, found.revision)
    if native:
        _ = checkpoint.qwen2
    return checkpoint


def _decoder_config(config: Mapping[str, Any], name: str) -> DecoderConfig:
    with _damage(name):
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        context = longest_context(config, int(config["max_position_embeddings"]))
        windowed = config.get("use_sliding_window", config.get("model_type") != "qwen2")
        window = config.get("sliding_window") if windowed else None
        result = DecoderConfig(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context_length=min(context, int(window)) if window else context,  # within its window, attention is full
        )
    if any(value <= 0 for value in vars(result).values()) or result.heads % result.kv_heads or result.head_dim % 2:
        raise CheckpointError(f"checkpoint {name}: config.json describes no model that can exist ({result})")
    return result


def _qwen2_config(config: Mapping[str, Any], shapes: DecoderConfig, name: str) -> Qwen2Config:
    found = config.get("model_type")
    if found != "qwen2":
        raise UnsupportedArchitectureError(name, f"model_type {found!r}", "Qwen2")
    if config.get("rope_scaling"):
        raise UnsupportedArchitectureError(name, f"rope_scaling {config['rope_scaling']!r}", "plain rotary embeddings")
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise UnsupportedArchitectureError(name, f"rope_parameters {rope!r}", "plain rotary embeddings")
    if config.get("use_sliding_window"):
        raise UnsupportedArchitectureError(name, "sliding-window attention", "full attention")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedArchitectureError(name, f"hidden_act {config['hidden_act']!r}", "silu")
    if shapes.head_dim % HEAD_DIM_STEP:
        raise UnsupportedArchitectureError(name, f"head_dim {shapes.head_dim}", f"multiples of {HEAD_DIM_STEP}")
    with _damage(name):
        result = Qwen2Config(
            **asdict(shapes),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            rms_norm_eps=float(config["rms_norm_eps"]),
        )
    if not all(0 < value < math.inf for value in (result.rope_theta, result.rms_norm_eps)):  # NaN is neither
        raise CheckpointError(f"checkpoint {name}: config.json describes no model that can exist ({result})")
    return result


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """CheckpointError for a config that is not as it should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"checkpoint {name}: config.json is incomplete or damaged ({type(error).__name__}: {error})"
        ) from None


def _index(folder: Path, name: str) -> dict[str, _Entry]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index, name).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        files = sorted({str(file) for file in weight_map.values()})
    else:
        files = ["model.safetensors"]
    entries: dict[str, _Entry] = {}
    for file in files:
        path = folder / file
        if Path(file).name != file or not path.is_file():
            raise CheckpointNotFoundError(name, f"weight file {file} is missing (only safetensors are read)")
        entries |= _header(path)
    return entries


def _header(path: Path) -> dict[str, _Entry]:
    """Parse a safetensors header: u64 length, JSON, then the tensors' bytes (github.com/huggingface/safetensors)."""
    import ml_dtypes  # registers bfloat16 with numpy

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{path} is not a safetensors file, or is truncated; download it again")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged safetensors header; download it again")
    header.pop("__metadata__", None)
    entries = {}
    for name, info in header.items():
        try:
            start, end = info["data_offsets"]
            shape = tuple(info["shape"])
            dtype = np.dtype(ml_dtypes.bfloat16 if info["dtype"] == "BF16" else _DTYPES[info["dtype"]])
            if any(type(n) is not int or n < 0 for n in (start, end, *shape)):
                raise ValueError("a place or a length that is no whole number")
        except (KeyError, TypeError, ValueError):
            found = reprlib.repr(info)
            raise CheckpointError(f"{path}: tensor {name} is {found}; fp32, fp16 and bf16 are read") from None
        if not start <= end <= size - 8 - length or end - start != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{path} ends before tensor {name} does; download it again")
        entries[name] = _Entry(path, dtype, shape, 8 + length + start)
    return entries


def read_json(path: Path, source: str) -> dict[str, Any]:
    """Return the JSON object in a file of the checkpoint `source`; CheckpointError when there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointNotFoundError(source, f"{path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data
