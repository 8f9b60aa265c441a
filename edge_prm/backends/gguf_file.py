"""Read the header of a GGUF file, and refuse it before llama.cpp sees it if it is not the model its bundle describes.

llama.cpp trusts its files: a wrong shape or count can end the process. So everything that it builds on is checked here
first: sizes against the file's length, tensors against the shapes of the manifest, the head against the vocabulary.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_prm.errors import BundleIntegrityError
from edge_prm.manifest import Architecture

Floats = npt.NDArray[np.float32]

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MOST_ITEMS = 1 << 22
_MOST_STRING = 1 << 24
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
           11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2)}  # fmt: skip
"""ggml type -> (values of a block, its bytes): F32, F16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, BF16."""


@dataclass(frozen=True)
class Head:
    """Two rows of the vocabulary (`row` and what eight bits left over of it), or linears applied to hidden states."""

    row: int | None
    residual_row: int
    scale: float
    bias: float
    layers: tuple[tuple[Floats, Floats], ...] = ()

    def apply(self, hidden: Floats) -> float:
        """The reward of a hidden state `[hidden]`: sigmoid of one output, or softmax over two, class 1."""
        values = hidden
        for index, (weight, bias) in enumerate(self.layers):
            values = (np.maximum(values, 0) if index else values) @ weight.T + bias
        logit = values[0] if len(values) == 1 else values[1] - values[0]
        return float(1 / (1 + np.exp(-np.float64(logit))))


@dataclass(frozen=True)
class _Header:
    fields: Mapping[str, Any]
    tensors: Mapping[str, tuple[tuple[int, ...], int, int]]
    """name -> (shape, outermost dimension first; ggml type; offset into the data)."""
    data_start: int


def check_gguf(path: Path, architecture: Architecture, head_file: Path) -> Head:
    """Return the reward head of a GGUF file. BundleIntegrityError when it is damaged, of another model, or not ours."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = _Reader(file, size).header()
    except (OSError, ValueError, struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise BundleIntegrityError(path, f"not a whole GGUF file ({error})") from None
    try:
        _check_tensors(header, architecture, size)
        return _read_head(header, architecture, head_file)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleIntegrityError(path, f"not the model of this bundle ({error})") from None


class _Reader:
    """Reads little-endian values; a count or length that the file cannot hold is a ValueError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def header(self) -> _Header:
        if self._file.read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        tensors, fields = self._count("Q"), self._count("Q")
        values = {}
        for _ in range(fields):
            name = self._string()
            values[name] = self._value(self._scalar("I"))
        found = {}
        for _ in range(tensors):
            name, dimensions = self._string(), self._scalar("I")
            if dimensions > 4:
                raise ValueError(f"tensor {name[:60]!r} of {dimensions} dimensions")
            shape = tuple(int(self._scalar("Q")) for _ in range(dimensions))[::-1]
            found[name] = (shape, int(self._scalar("I")), int(self._scalar("Q")))
        if len(values) < fields or len(found) < tensors:
            raise ValueError("a name stands there twice")
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment > 1 << 16 or alignment % 8:
            raise ValueError(f"alignment {alignment!r}")
        return _Header(values, found, -(-self._file.tell() // alignment) * alignment)

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth == 0:
            inner, count = self._scalar("I"), self._count("Q")
            return [self._value(inner, 1) for _ in range(count)]
        raise ValueError(f"a value of type {kind}")

    def _scalar(self, form: str) -> Any:
        data = self._file.read(struct.calcsize(form))
        return struct.unpack(f"<{form}", data)[0]

    def _count(self, form: str) -> int:
        count = int(self._scalar(form))
        if count > min(_MOST_ITEMS, self._size):
            raise ValueError(f"a count of {count}")
        return count

    def _string(self) -> str:
        length = int(self._scalar("Q"))
        if length > min(_MOST_STRING, self._size):
            raise ValueError(f"a text of {length} bytes")
        data = self._file.read(length)
        if len(data) != length:
            raise ValueError("it ends too soon")
        return data.decode("utf-8", errors="surrogateescape")


def _check_tensors(header: _Header, architecture: Architecture, size: int) -> None:
    wanted = _wanted(architecture)
    if missing := [name for name in wanted if name not in header.tensors]:
        raise ValueError(f"tensor {missing[0]} is missing")
    if unknown := [name for name in header.tensors if name not in wanted]:
        raise ValueError(f"tensor {unknown[0][:60]!r} is none of a qwen2 model")
    for name, shape in wanted.items():
        found, kind, offset = header.tensors[name]
        if found != shape:
            raise ValueError(f"{name} has shape {list(found)} and should have {list(shape)}")
        if kind not in _BLOCKS:
            raise ValueError(f"{name} has type {kind}")
        values, stored = _BLOCKS[kind]
        if shape[-1] % values:
            raise ValueError(f"{name} has rows of {shape[-1]} values in blocks of {values}")
        if header.data_start + offset + math.prod(shape) // values * stored > size:
            raise ValueError(f"the file ends before {name} does")
    for key, value in (
        ("general.architecture", "qwen2"),
        ("qwen2.block_count", architecture.layers),
        ("qwen2.embedding_length", architecture.hidden),
        ("qwen2.feed_forward_length", architecture.intermediate),
        ("qwen2.attention.head_count", architecture.heads),
        ("qwen2.attention.head_count_kv", architecture.kv_heads),
    ):
        if header.fields.get(key) != value:
            raise ValueError(f"{key} is {header.fields.get(key)!r} and should be {value!r}")
    tokens = header.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(tokens) != architecture.vocabulary:
        raise ValueError("its list of tokens is not as long as the vocabulary")


def _wanted(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Tensors of a qwen2 model whose output matrix is its embedding, with their shapes."""
    hidden, inner = architecture.hidden, architecture.intermediate
    width, shared = architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (architecture.vocabulary, hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(architecture.layers):
        for name, shape in (
            ("attn_norm.weight", (hidden,)),
            ("ffn_norm.weight", (hidden,)),
            *((f"attn_{part}.weight", (rows, hidden)) for part, rows in (("q", width), ("k", shared), ("v", shared))),
            *((f"attn_{part}.bias", (rows,)) for part, rows in (("q", width), ("k", shared), ("v", shared))),
            ("attn_output.weight", (hidden, width)),
            ("ffn_gate.weight", (inner, hidden)),
            ("ffn_up.weight", (inner, hidden)),
            ("ffn_down.weight", (hidden, inner)),
        ):
            wanted[f"blk.{layer}.{name}"] = shape
    return wanted


def _read_head(header: _Header, architecture: Architecture, head_file: Path) -> Head:
    kind = header.fields.get("edge_prm.head")
    if kind == "rows":
        rows = [header.fields[f"edge_prm.head.{name}"] for name in ("row", "residual_row")]
        scale, bias = (float(header.fields[f"edge_prm.head.{name}"]) for name in ("scale", "bias"))
        if not all(type(row) is int and 0 <= row < architecture.vocabulary for row in rows):
            raise ValueError(f"the head's rows are {rows}")
        if not (math.isfinite(scale) and scale > 0 and math.isfinite(bias)):
            raise ValueError(f"the head's scale is {scale} and its bias {bias}")
        return Head(rows[0], rows[1], scale, bias)
    if kind != "beside":
        raise ValueError("it carries no reward head of edge-prm; write one with `edge-prm export --gguf`")
    return Head(None, 0, 1.0, 0.0, _read_layers(head_file, architecture))


def _read_layers(path: Path, architecture: Architecture) -> tuple[tuple[Floats, Floats], ...]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            count = len(arrays.files) // 2
            layers = tuple((arrays[f"weight.{index}"], arrays[f"bias.{index}"]) for index in range(count))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    inputs = architecture.hidden
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != inputs or bias.shape != (weight.shape[0],):
            raise ValueError(f"{path.name} holds a layer of shape {list(weight.shape)}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"{path.name} holds NaN or infinity")
        inputs = weight.shape[0]
    if not layers or inputs not in (1, 2):
        raise ValueError(f"{path.name} ends in {inputs} outputs")
    return layers
