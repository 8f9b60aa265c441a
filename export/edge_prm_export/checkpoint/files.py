"""Read a checkpoint without torch: config, safetensors (one file or shards; fp32, fp16, bf16), one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.checkpoint_files import CONFIG, check_files, checkpoint_sha256, read_json, reading
from edge_prm.errors import CheckpointError, UnsupportedArchitectureError
from edge_prm.source import find_checkpoint
from edge_prm_export.checkpoint.loadable import check_loadable, longest_context
from edge_prm_export.checkpoint.safetensors_file import Entry, numpy_dtype, read_entries, read_values
from edge_prm_export.decoder.names import BARE, PREFIX, check_decoder, decoder_names, is_bare

__all__ = ["Checkpoint", "DecoderConfig", "Qwen2Config", "open_checkpoint", "read_json"]

HEAD_DIM_STEP = 16
"""ONNX Runtime's GroupQueryAttention takes heads whose size is a multiple of this."""


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


class Checkpoint:
    """A folder in the layout of transformers; tensors come as float32, in the names of transformers' language model.

    Opening reads the config and the headers of the weights. Raises CheckpointError with a sentence of its own for
    folders that are something else: adapters, quantized weights, other formats, files that were not downloaded.
    """

    def __init__(self, folder: Path, name: str, revision: str | None = None) -> None:
        self.folder = folder
        self.name = name
        self.revision = revision
        check_files(folder, name)
        self.raw_config = read_json(folder / CONFIG, name)
        _check_full_precision(self.raw_config, name)
        self.model_type = str(self.raw_config.get("model_type"))
        self.config = _decoder_config(self.raw_config, name)
        entries = read_entries(folder, name)
        self._entries = _with_prefix(entries) if is_bare(entries) else entries

    @cached_property
    def qwen2(self) -> Qwen2Config:
        """The config of a model that the native exporter knows; UnsupportedArchitectureError for any other."""
        return _qwen2_config(self.raw_config, self.config, self.name)

    @property
    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def check_decoder(self) -> None:
        """CheckpointError unless all tensors of a Qwen2 decoder are there, in dtypes that are read, and no others.

        Names and dtypes only: shapes are checked when a tensor is read.
        """
        check_decoder(self._entries, self.config.layers, self.name)
        for name in decoder_names(self.config.layers):
            numpy_dtype(self._entries[name], name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def tensor(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        """Return a tensor as float32; CheckpointError when its shape is not `shape` or it holds NaN or infinity."""
        if shape:
            self.check_shape(name, *shape)
        entry = self._entry(name)
        return read_values(entry, name, 0, entry.shape)

    def check_shape(self, name: str, *shape: int) -> None:
        """CheckpointError when a tensor's shape is not `shape`; nothing is read."""
        found = self._entry(name).shape
        if found != shape:
            raise CheckpointError(
                f"checkpoint {self.name}: {name} has shape {list(found)} and config.json asks for {list(shape)}"
            )

    def rows(self, name: str, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return rows `start` to `end` of a matrix as float32: for one too large to hold at once."""
        entry = self._entry(name)
        width = int(np.prod(entry.shape[1:]))
        return read_values(entry, name, start * width, (end - start, *entry.shape[1:]))

    def file(self, name: str) -> bytes:
        """The bytes of a small file of the folder; CheckpointError when it cannot be read."""
        with reading(self.folder / name):
            return (self.folder / name).read_bytes()

    @cached_property
    def _sha256(self) -> str:
        return checkpoint_sha256(self.folder)

    def sha256(self) -> str:
        """SHA-256 over all files that decide the rewards; see edge_prm.checkpoint_files. Computed once."""
        return self._sha256

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"checkpoint {self.name}: tensor {name} is missing from its safetensors files")
        return self._entries[name]


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


def _with_prefix(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """A decoder that was saved by itself, in the names of a language model."""
    return {PREFIX + name if name.startswith(BARE) else name: entry for name, entry in entries.items()}


def _check_full_precision(config: Mapping[str, Any], name: str) -> None:
    """CheckpointError for weights that config.json says are quantized, or lie under a name of its own."""
    if found := config.get("quantization_config"):
        method = found.get("quant_method", "a method it does not name") if isinstance(found, dict) else found
        raise CheckpointError(
            f"checkpoint {name} is quantized ({method}, by its config.json); an export quantizes by itself: give the "
            "original checkpoint in fp32, fp16 or bf16"
        )
    if file := config.get("transformers_weights"):
        raise CheckpointError(
            f"checkpoint {name}: config.json names a weight file of its own ({file}), and only model.safetensors or "
            "its index are read; save the checkpoint again with save_pretrained"
        )
