"""Check a GGUF file before llama.cpp opens it, and read its reward head.

llama.cpp trusts its files: a list shorter than another, or a row longer than its tensor, can end the process. So only
what `edge-prm export --gguf` writes is accepted: the keys, tensors, shapes and types of the layout that the manifest's
model family has (see `layout`), with the sizes of the manifest, and everything inside the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_prm.arrays import Float32
from edge_prm.backends.gguf.head_file import HEAD_NAME, read_layers
from edge_prm.backends.gguf.header import Header, Reader, TensorInfo
from edge_prm.backends.gguf.layout import (
    EXTERNAL_HEAD,
    GENERAL_KEYS,
    HEAD_KEYS,
    QUANTIZER_KEYS,
    RESIDUAL_STEP,
    Layout,
    TensorSpec,
    layout_of,
)
from edge_prm.backends.gguf.vocabulary import check_vocabulary
from edge_prm.errors import BundleIntegrityError
from edge_prm.head import Layers
from edge_prm.manifest import Architecture

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
_BLOCKS = {F32: (1, 4), F16: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), Q8_0: (32, 34), 10: (256, 84),
           11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136),
           BF16: (1, 2)}  # fmt: skip
"""ggml type -> (values of a block, its bytes): F32, F16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, BF16."""
_MAX_NUMBER = 1 << 40
_FOREIGN = (OSError, ValueError, KeyError, TypeError, struct.error, OverflowError)


def read_head(path: Path, architecture: Architecture, head_file: Path | None) -> Layers:
    """Check a GGUF file and return its reward head: (weight `[out, in]`, bias `[out]`) pairs, float32.

    `head_file`: the file of an external head, where the manifest lists one. BundleIntegrityError when the file is
    damaged, of another model, or has no reward head.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_head(data, architecture, head_file)
    except BundleIntegrityError:
        raise
    except _FOREIGN as error:
        raise BundleIntegrityError(path, f"not the GGUF file of this bundle ({error})") from None


def _read_head(data: mmap.mmap, architecture: Architecture, head_file: Path | None) -> Layers:
    reader = Reader(data)
    header = reader.header()
    layout = layout_of(architecture.model_type)
    _check_sizes(architecture)
    _check_metadata(header.fields, layout, architecture)
    check_vocabulary(reader, header.fields, architecture.vocabulary)
    _check_tensors(header, layout.tensors(architecture), len(data))
    if header.fields["edge_prm.head"] != EXTERNAL_HEAD:
        return (_head_in_rows(data, header, architecture),)
    if head_file is None:
        raise ValueError(f"its reward head is external, and the manifest lists no {HEAD_NAME}")
    return read_layers(head_file, architecture.hidden)


def _head_in_rows(data: mmap.mmap, header: Header, architecture: Architecture) -> tuple[Float32, Float32]:
    """Weight `[1, hidden]` and bias `[1]` of a head that is in two rows of the embedding."""
    row, residual = (header.fields[f"edge_prm.head.{name}"] for name in ("row", "residual_row"))
    scale, bias = (float(header.fields[f"edge_prm.head.{name}"]) for name in ("scale", "bias"))
    in_range = 0 <= min(row, residual) <= max(row, residual) < architecture.vocabulary
    if not in_range or not (scale > 0 and math.isfinite(bias)):
        raise ValueError(f"its reward head is in rows {row} and {residual}, scale {scale}, bias {bias}")
    weight = _embedding_row(data, header, row) + _embedding_row(data, header, residual) / np.float32(RESIDUAL_STEP)
    weight = weight[None] / np.float32(scale)
    if not np.isfinite(weight).all():
        raise ValueError("its reward head holds NaN or infinity")
    return weight, np.array([bias], dtype=np.float32)


def _check_sizes(architecture: Architecture) -> None:
    """ValueError for sizes that llama.cpp has no attention for: it ends the process when it builds the graph."""
    if architecture.heads % architecture.kv_heads or architecture.head_dim % 2:
        raise ValueError(
            f"the manifest has {architecture.heads} heads on {architecture.kv_heads} for keys and values, "
            f"each of size {architecture.head_dim}"
        )


def _check_metadata(fields: Mapping[str, Any], layout: Layout, architecture: Architecture) -> None:
    """ValueError for a key that is missing, unexpected, or has another value or type than the exporter's."""
    if fields.get("general.architecture") != layout.architecture:
        raise ValueError(
            f"its architecture is {fields.get('general.architecture')!r} and should be {layout.architecture!r}"
        )
    if "edge_prm.head" not in fields:
        raise ValueError("it has no reward head of edge-prm")
    required = dict(GENERAL_KEYS)
    if fields["edge_prm.head"] != EXTERNAL_HEAD:
        required |= HEAD_KEYS
    for key in layout.metadata():
        if key.size is not None:
            _check_equal(fields, key.name, getattr(architecture, key.size))
        required[key.name] = key.type
    for name, type_ in required.items():
        _check_type(name, fields.get(name), type_)
    for name, type_ in QUANTIZER_KEYS.items():
        if name in fields:
            _check_type(name, fields[name], type_)
    for key in layout.metadata():
        if not fields[key.name] > 0:
            raise ValueError(f"{key.name} is {fields[key.name]!r}")
    known = {"general.architecture", *required, *QUANTIZER_KEYS}
    for name in fields:
        if name not in known and not name.startswith(("edge_prm.", "tokenizer.ggml.")):
            raise ValueError(f"unexpected key {name[:60]!r}")


def _check_equal(fields: Mapping[str, Any], name: str, expected: int) -> None:
    if fields.get(name) != expected or type(fields[name]) is not int:
        raise ValueError(f"{name} is {fields.get(name)!r} and should be {expected!r}")


def _check_type(name: str, value: object, type_: type) -> None:
    """ValueError for a value of another type, or a number that is not finite or beyond any sense."""
    if type(value) is not type_ or (isinstance(value, (int, float)) and not abs(value) < _MAX_NUMBER):
        raise ValueError(f"{name} is {value!r}")


def _check_tensors(header: Header, expected: Mapping[str, TensorSpec], size: int) -> None:
    """ValueError unless the file holds the tensors of a model, each with its shape, and all of its `size` bytes."""
    if missing := [name for name, spec in expected.items() if name not in header.tensors and not spec.optional]:
        raise ValueError(f"tensor {missing[0]} is missing")
    if unexpected := [name for name in header.tensors if name not in expected]:
        raise ValueError(f"unexpected tensor {unexpected[0][:60]!r}")
    for name, tensor in header.tensors.items():
        _check_tensor(name, tensor, expected[name].shape, size - header.data_start)


def _check_tensor(name: str, tensor: TensorInfo, shape: tuple[int, ...], size: int) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)} and should have {list(shape)}")
    if tensor.type not in _BLOCKS or (tensor.type != F32 and len(shape) == 1):
        raise ValueError(f"{name} has type {tensor.type}")
    values, stored = _BLOCKS[tensor.type]
    if shape[-1] % values:
        raise ValueError(f"{name} has rows of {shape[-1]} values in blocks of {values}")
    if tensor.offset % 32 or tensor.offset + math.prod(shape) // values * stored > size:
        raise ValueError(f"the file ends before {name} does")


def _embedding_row(data: mmap.mmap, header: Header, row: int) -> Float32:
    """One row of the embedding, `[hidden]`."""
    (_, hidden), type_, offset = header.tensors["token_embd.weight"]
    values, stored = _BLOCKS[type_]
    length = hidden // values * stored
    start = header.data_start + offset + row * length
    raw = data[start : start + length]
    if type_ == Q8_0:  # blocks of 32: a scale in fp16, then int8
        blocks = np.frombuffer(raw, dtype=np.dtype([("scale", "<f2"), ("values", "i1", 32)]))
        return (blocks["scale"].astype(np.float32)[:, None] * blocks["values"]).reshape(-1)
    if type_ == BF16:
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if type_ not in (F32, F16):
        raise ValueError(f"token_embd.weight has type {type_}; the reward head needs eight bits at least")
    return np.frombuffer(raw, dtype="<f4" if type_ == F32 else "<f2").astype(np.float32)
