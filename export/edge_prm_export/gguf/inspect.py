"""Where things are in a GGUF file that was just written."""

from __future__ import annotations

import mmap
from pathlib import Path

from edge_prm.backends.gguf.header import Header, Reader, TensorInfo


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """name -> tensor of a file; the offset is one into the file, in bytes."""
    header, _ = _read(path)
    return {
        name: TensorInfo(shape, type_, header.data_start + at) for name, (shape, type_, at) in header.tensors.items()
    }


def position_of(path: Path, key: str) -> int:
    """The byte of a file at which the value of a metadata key starts."""
    return _read(path)[1][key]


def _read(path: Path) -> tuple[Header, dict[str, int]]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = Reader(data)
        return reader.header(), reader.positions
