"""Read safetensors files without torch: a header of JSON, then the tensors' bytes (github.com/huggingface/safetensors).

Tensors are read, not mapped: pages of a mapped file count as the process's memory, and an export must fit in 3 GB.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.checkpoint_files import INDEX, WEIGHTS, read_index, reading, weight_files
from edge_prm.errors import CheckpointError

READ_DTYPES = ("F32", "F16", "BF16")
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
"""dtype -> bytes of a value. Of others nothing is known but where they lie."""
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `start` is its first byte in the file, `dtype` as the header spells it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def read_entries(folder: Path, name: str) -> dict[str, Entry]:
    """tensor -> where it lies, over all weight files of a checkpoint; CheckpointError for files that do not agree."""
    files = weight_files(folder, name)
    if files == [folder / WEIGHTS]:
        return read_header(files[0])
    weight_map = read_index(folder, name)
    entries: dict[str, Entry] = {}
    for path in files:
        header = read_header(path)
        _check_shard(path, header, {tensor for tensor, file in weight_map.items() if file == path.name})
        entries |= header
    return entries


def read_header(path: Path) -> dict[str, Entry]:
    """tensor -> where it lies in a file; a dtype that no weight can have is an error only when it is read."""
    with reading(path):
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path} is not a safetensors file, or is truncated; download it again")
            text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged safetensors header; download it again")
    header.pop("__metadata__", None)
    return {name: _entry(path, name, info, 8 + length, size) for name, info in header.items()}


def read_values(entry: Entry, name: str, skip: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Values of a tensor as float32 of a shape, after the first `skip` ones.

    CheckpointError for a dtype that is not fp32, fp16 or bf16, a file that ends too early, NaN and infinity.
    """
    dtype, count = numpy_dtype(entry, name), math.prod(shape)
    with reading(entry.path):
        values = np.fromfile(entry.path, dtype=dtype, count=count, offset=entry.start + skip * dtype.itemsize)
    if len(values) != count:
        raise CheckpointError(f"{entry.path} ends before tensor {name} does; download it again")
    result = values.astype(np.float32, copy=False).reshape(shape)
    if not np.isfinite(result).all():
        raise CheckpointError(f"{entry.path}: tensor {name} holds NaN or infinity")
    return result


def numpy_dtype(entry: Entry, name: str) -> np.dtype[Any]:
    """numpy's dtype of a tensor; CheckpointError for one that cannot be read as a weight."""
    import ml_dtypes  # numpy has no bfloat16

    if entry.dtype not in READ_DTYPES:
        raise CheckpointError(
            f"{entry.path}: tensor {name} has dtype {entry.dtype}; fp32, fp16 and bf16 are read "
            "(a quantized checkpoint cannot be exported: give the original one)"
        )
    return np.dtype({"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}[entry.dtype])


def _entry(path: Path, name: str, info: Any, data: int, size: int) -> Entry:
    try:
        start, end = info["data_offsets"]
        shape, dtype = tuple(info["shape"]), info["dtype"]
        if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in (start, end, *shape)):
            raise ValueError("a place or a length that is not an integer")
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: tensor {name} is {reprlib.repr(info)}; download the file again") from None
    expected = math.prod(shape) * _BYTES[dtype] if dtype in _BYTES else end - start
    if not start <= end <= size - data or end - start != expected:
        raise CheckpointError(f"{path} ends before tensor {name} does; download it again")
    return Entry(path, dtype, shape, data + start)


def _check_shard(path: Path, header: dict[str, Entry], listed: set[str]) -> None:
    """CheckpointError where index and shard disagree: transformers would leave such a tensor out or make it up."""
    if missing := sorted(listed - header.keys()):
        raise CheckpointError(
            f"{path} lacks tensor {missing[0]}, which {INDEX} says is in it ({len(missing)} such tensors); "
            "download the checkpoint again"
        )
    if surplus := sorted(header.keys() - listed):
        raise CheckpointError(
            f"{path} holds tensor {surplus[0]}, which {INDEX} does not list ({len(surplus)} such tensors); "
            "download the checkpoint again"
        )
