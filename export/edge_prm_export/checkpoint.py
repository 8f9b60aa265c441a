"""Read a checkpoint without torch: config, safetensors (one file or shards; fp32, fp16, bf16), one tensor at a time.

Tensors are read, not mapped: pages of a mapped file count as the process's memory, and an export must fit in 3 GB.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError, CheckpointNotFoundError, MissingExtraError, UnsupportedArchitectureError

DEFAULT_SOURCE = "Gen-Verse/ReasonFlux-PRM-1.5B"
FILE_PATTERNS = ["*.json", "*.safetensors", "reward_head.pt", "chat_template.jinja"]
HEAD_DIM_STEP = 16
"""ONNX Runtime's GroupQueryAttention takes heads whose size is a multiple of this."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class Qwen2Config:
    """Shapes and constants of a Qwen2 decoder, read from config.json."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context_length: int
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
        self.config = _qwen2_config(self.raw_config, name)
        self._entries = _index(folder, name)

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
        """Hash of the checkpoint's own files: config, index and heads whole, weight files by header and size.

        Two checkpoints of one family have the same headers; so a sample of each weight file is hashed as well.
        """
        digest = hashlib.sha256()
        for path in sorted(p for pattern in FILE_PATTERNS for p in self.folder.glob(pattern)):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with open(path, "rb") as file:
                if path.suffix == ".safetensors":
                    digest.update(_sample(file, path.stat().st_size))
                else:
                    digest.update(file.read())
        return digest.hexdigest()

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


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open a folder, a hub id (downloaded at `revision`), or one of the embedded `demo` and `demo-reference`."""
    from edge_prm.demo import CHECKPOINTS
    from edge_prm.demo import folder as demo_folder

    folder = Path(source)
    if source in CHECKPOINTS and not folder.exists():
        return Checkpoint(demo_folder(source), source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"--revision {revision} goes with a hub id, and {source} is a folder")
        return Checkpoint(folder, folder.resolve().name)
    if folder.exists():
        raise CheckpointNotFoundError(source, "it is a file, not a folder")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointNotFoundError(source, "no such folder")
    return _download(source, revision)


def _download(source: str, revision: str | None) -> Checkpoint:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("export", ["huggingface_hub"]) from None
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=FILE_PATTERNS))
    except Exception as error:  # network, HTTP and validation errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointNotFoundError(
            source, f"no such folder, and the download from the hub failed ({reason})"
        ) from None
    return Checkpoint(folder, source, folder.name)  # the hub's cache names the folder after the commit


def _qwen2_config(config: Mapping[str, Any], name: str) -> Qwen2Config:
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
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        result = Qwen2Config(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context_length=int(config["max_position_embeddings"]),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            rms_norm_eps=float(config["rms_norm_eps"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"checkpoint {name}: config.json is incomplete or damaged ({type(error).__name__}: {error})"
        ) from None
    usable = all(0 < value < math.inf for value in vars(result).values())  # NaN is neither
    if not usable or result.heads % result.kv_heads or result.head_dim % 2:
        raise CheckpointError(f"checkpoint {name}: config.json describes no model that can exist ({result})")
    if result.head_dim % HEAD_DIM_STEP:
        raise UnsupportedArchitectureError(name, f"head_dim {result.head_dim}", f"multiples of {HEAD_DIM_STEP}")
    return result


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


def _sample(file: Any, size: int, blocks: int = 64, block_bytes: int = 1 << 16) -> bytes:
    """The first bytes (the header among them) and evenly spread blocks: enough to tell two checkpoints apart."""
    parts = []
    for position in np.linspace(0, max(0, size - block_bytes), blocks).astype(int):
        file.seek(int(position))
        parts.append(file.read(block_bytes))
    return b"".join(parts)
