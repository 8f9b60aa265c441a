"""Read the header of a GGUF file and its reward head, and refuse the file before llama.cpp sees it if it is not ours.

llama.cpp trusts its files: a list shorter than another, or a row longer than its tensor, can end the process. So
nothing is handed on but what `edge-prm export --gguf` writes: known names, each of the type and length it has there,
tensors of the shapes in the manifest, everything inside the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_prm.backends.gguf.head import Floats, Layers, read_layers
from edge_prm.backends.gguf.header import STRING, Array, Header, Reader
from edge_prm.errors import BundleIntegrityError
from edge_prm.manifest import Architecture

HEAD_NAME = "reward_head.npz"
RESIDUAL_STEP = 128.0
"""What eight bits leave over of the head's row is at most half of one 127th of a block's largest value, so it is
written that much larger."""

_LAST_TOKEN_TYPE = 6  # of llama.cpp's llama_token_type
_F32, _F16, _Q8_0, _BF16 = 0, 1, 8, 30
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
           11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136),
           30: (1, 2)}  # fmt: skip
"""ggml type -> (values of a block, its bytes): F32, F16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, BF16."""


def read_head(path: Path, architecture: Architecture, head_file: Path | None) -> Layers:
    """Check a GGUF file and return its reward head: (weight `[out, in]`, bias `[out]`) pairs, float32.

    `head_file`: where heads stand that do not fit into the GGUF. BundleIntegrityError when the file is damaged, of
    another model, or without a head of ours.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_head(data, architecture, head_file)
    except BundleIntegrityError:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise BundleIntegrityError(path, f"not the GGUF file of this bundle ({error})") from None


def _read_head(data: mmap.mmap, architecture: Architecture, head_file: Path | None) -> Layers:
    reader = Reader(data)
    header = reader.header()
    _check_architecture(architecture)
    _check_fields(header.fields, architecture)
    _check_vocabulary(reader, header.fields)
    _check_tensors(header, architecture, len(data))
    if header.fields["edge_prm.head"] == "beside":
        if head_file is None:
            raise ValueError(f"its reward head should stand beside it, and the manifest lists no {HEAD_NAME}")
        return read_layers(head_file, architecture.hidden)
    row, residual = (header.fields[f"edge_prm.head.{name}"] for name in ("row", "residual_row"))
    scale, bias = (float(header.fields[f"edge_prm.head.{name}"]) for name in ("scale", "bias"))
    if not 0 <= min(row, residual) <= max(row, residual) < architecture.vocabulary or not (
        scale > 0 and math.isfinite(bias)
    ):
        raise ValueError(f"its reward head is in rows {row} and {residual}, scale {scale}, bias {bias}")
    weight = _embedding_row(data, header, row) + _embedding_row(data, header, residual) / np.float32(RESIDUAL_STEP)
    weight = weight[None] / np.float32(scale)
    if not np.isfinite(weight).all():
        raise ValueError("its reward head holds NaN or infinity")
    return ((weight, np.array([bias], dtype=np.float32)),)


def _check_architecture(architecture: Architecture) -> None:
    """ValueError for sizes that llama.cpp has no attention for: it ends the process when it builds the graph."""
    if architecture.heads % architecture.kv_heads or architecture.head_dim % 2:
        raise ValueError(
            f"the manifest has {architecture.heads} heads on {architecture.kv_heads} for keys and values, "
            f"each of size {architecture.head_dim}"
        )


def _check_vocabulary(reader: Reader, fields: Mapping[str, Any]) -> None:
    """ValueError for tokens that llama.cpp takes for equal, which ends the process, and for merges that are none.

    It reads a token as a C string, which ends at its first zero byte, and gives an empty one a name of its own.
    """
    tokens = reader.strings(fields["tokenizer.ggml.tokens"])
    for index, token in enumerate(tokens):
        if not token or b"\0" in token:
            raise ValueError(f"token {index} is empty or holds a zero byte")
    if len(set(tokens)) != len(tokens):
        first: dict[bytes, int] = {}
        index, token = next(pair for pair in enumerate(tokens) if first.setdefault(pair[1], pair[0]) != pair[0])
        raise ValueError(f"tokens {first[token]} and {index} are both {token[:60]!r}")
    types = reader.numbers(fields["tokenizer.ggml.token_type"])
    if len(types) and not 0 <= types.min() <= types.max() <= _LAST_TOKEN_TYPE:
        raise ValueError(f"token types lie between {types.min()} and {types.max()}")
    for index, merge in enumerate(reader.strings(fields["tokenizer.ggml.merges"])):
        left, _, right = merge.partition(b" ")
        if not left or not right or b" " in right or b"\0" in merge:
            raise ValueError(f"merge {index} is {merge[:60]!r} and should be two tokens")
    end = fields.get("tokenizer.ggml.eos_token_id", 0)
    if type(end) is not int or not 0 <= end < len(tokens):
        raise ValueError(f"tokenizer.ggml.eos_token_id is {end!r} and there are {len(tokens)} tokens")


def _check_fields(fields: Mapping[str, Any], architecture: Architecture) -> None:
    """ValueError for a field that is missing, too many, or has another type, value or length than the exporter's."""
    if fields.get("general.architecture") != "qwen2":
        raise ValueError(f"it is of architecture {fields.get('general.architecture')!r}")
    if "edge_prm.head" not in fields:
        raise ValueError("it carries no reward head of edge-prm")
    for key, wanted in {
        "qwen2.block_count": architecture.layers,
        "qwen2.embedding_length": architecture.hidden,
        "qwen2.feed_forward_length": architecture.intermediate,
        "qwen2.attention.head_count": architecture.heads,
        "qwen2.attention.head_count_kv": architecture.kv_heads,
        "qwen2.attention.key_length": architecture.head_dim,
        "qwen2.attention.value_length": architecture.head_dim,
        "qwen2.vocab_size": architecture.vocabulary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
    }.items():
        if fields.get(key) != wanted or type(fields[key]) is not type(wanted):
            raise ValueError(f"{key} is {fields.get(key)!r} and should be {wanted!r}")
    for key, kinds in {
        "tokenizer.ggml.tokens": (STRING,),
        "tokenizer.ggml.token_type": (5,),  # int32
        "tokenizer.ggml.merges": (STRING,),
    }.items():
        found = fields.get(key)
        if not isinstance(found, Array) or found.kind not in kinds:
            raise ValueError(f"{key} is missing or no list of its kind")
        if key != "tokenizer.ggml.merges" and found.length != architecture.vocabulary:
            raise ValueError(f"{key} has {found.length} items and the vocabulary {architecture.vocabulary}")
    for key, kind in {
        "general.name": str,
        "qwen2.context_length": int,
        "qwen2.rope.freq_base": float,
        "qwen2.attention.layer_norm_rms_epsilon": float,
        "edge_prm.version": str,
        "edge_prm.source.sha256": str,
        "edge_prm.rotated": bool,
        "edge_prm.head": str,
        **({} if fields["edge_prm.head"] == "beside" else _HEAD_FIELDS),
    }.items():
        value = fields.get(key)
        if type(value) is not kind or (isinstance(value, (int, float)) and not abs(value) < 1 << 40):
            raise ValueError(f"{key} is {value!r}")
    for key in ("qwen2.context_length", "qwen2.rope.freq_base", "qwen2.attention.layer_norm_rms_epsilon"):
        if not fields[key] > 0:
            raise ValueError(f"{key} is {fields[key]!r}")
    for key in fields:
        if key not in _KNOWN and not key.startswith("edge_prm."):
            raise ValueError(f"{key[:60]!r} is no field of ours")


_HEAD_FIELDS: dict[str, type] = {
    "edge_prm.head.row": int,
    "edge_prm.head.residual_row": int,
    "edge_prm.head.scale": float,
    "edge_prm.head.bias": float,
}
_KNOWN = frozenset(
    ("general.architecture", "general.name", "general.quantization_version", "general.file_type", "qwen2.block_count",
     "qwen2.context_length", "qwen2.embedding_length", "qwen2.feed_forward_length", "qwen2.attention.head_count",
     "qwen2.attention.head_count_kv", "qwen2.attention.key_length", "qwen2.attention.value_length",
     "qwen2.rope.freq_base", "qwen2.attention.layer_norm_rms_epsilon", "qwen2.vocab_size", "tokenizer.ggml.model",
     "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
     "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token")
)  # fmt: skip


def _check_tensors(header: Header, architecture: Architecture, size: int) -> None:
    wanted = _wanted(architecture)
    if missing := [name for name in wanted if name not in header.tensors]:
        raise ValueError(f"tensor {missing[0]} is missing")
    if unknown := [name for name in header.tensors if name not in wanted]:
        raise ValueError(f"tensor {unknown[0][:60]!r} is none of this model")
    for name, shape in wanted.items():
        found, kind, offset = header.tensors[name]
        if found != shape:
            raise ValueError(f"{name} has shape {list(found)} and should have {list(shape)}")
        if kind not in _BLOCKS or (kind != _F32 and len(shape) == 1):
            raise ValueError(f"{name} has type {kind}")
        values, stored = _BLOCKS[kind]
        if shape[-1] % values:
            raise ValueError(f"{name} has rows of {shape[-1]} values in blocks of {values}")
        if offset % 32 or header.data_start + offset + math.prod(shape) // values * stored > size:
            raise ValueError(f"the file ends before {name} does")


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


def _embedding_row(data: mmap.mmap, header: Header, row: int) -> Floats:
    """One row of the embedding as float32."""
    (_, hidden), kind, offset = header.tensors["token_embd.weight"]
    values, stored = _BLOCKS[kind]
    length = hidden // values * stored
    start = header.data_start + offset + row * length
    raw = data[start : start + length]
    if kind == _Q8_0:  # blocks of 32: a scale in fp16, then int8
        blocks = np.frombuffer(raw, dtype=np.dtype([("scale", "<f2"), ("values", "i1", 32)]))
        return (blocks["scale"].astype(np.float32)[:, None] * blocks["values"]).reshape(-1)
    if kind == _BF16:
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if kind not in (_F32, _F16):
        raise ValueError(f"token_embd.weight has type {kind}; the reward head needs eight bits at least")
    return np.frombuffer(raw, dtype="<f4" if kind == _F32 else "<f2").astype(np.float32)
