"""Read the header of a GGUF file: its metadata, and where its tensors are. What does not fit the file is an error.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

STRING, ARRAY = 8, 9  # types of metadata
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MAX_ITEMS = 1 << 22
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class ListField:
    """A list in the metadata; its items stay in the file, in bytes `start` to `end`."""

    item_type: int
    length: int
    start: int
    end: int


class TensorInfo(NamedTuple):
    """Where a tensor is: its shape, outermost dimension first, its ggml type, and its offset into the data in bytes."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Metadata by key, tensors by name, and the byte of the file at which the tensors' data starts."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data_start: int


class Reader:
    """Reads little-endian values; what does not fit the file is a ValueError or struct.error.

    `positions`: the byte of the file at which the value of each metadata key starts.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self.positions: dict[str, int] = {}

    def header(self) -> Header:
        """Read all metadata and the list of tensors; ValueError for a key or tensor that comes twice."""
        if self._data[:4] != _MAGIC:
            raise ValueError("it does not start with GGUF")
        self._at = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        tensors, fields = self._count(), self._count()
        values: dict[str, Any] = {}
        for _ in range(fields):
            name = self._string()
            if name in values:
                raise ValueError(f"duplicate key {name[:60]!r}")
            type_ = self._scalar("I")
            self.positions[name] = self._at
            values[name] = self._value(type_)
        infos: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            name, dimensions = self._string(), self._scalar("I")
            if dimensions > 4 or name in infos:
                raise ValueError(f"tensor {name[:60]!r} has {dimensions} dimensions, or comes twice")
            shape = tuple(int(self._scalar("Q")) for _ in range(dimensions))[::-1]
            infos[name] = TensorInfo(shape, int(self._scalar("I")), int(self._scalar("Q")))
        return Header(values, infos, -(-self._at // 32) * 32)

    def _value(self, type_: int) -> Any:
        if type_ in _SCALARS:
            return self._scalar(_SCALARS[type_])
        if type_ == STRING:
            return self._string()
        if type_ != ARRAY:
            raise ValueError(f"a value of type {type_}")
        inner, length = self._scalar("I"), self._count()
        start = self._at
        if inner in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[inner]))
        elif inner == STRING:
            for _ in range(length):
                self._skip(self._scalar("Q"))
        else:
            raise ValueError(f"a list of type {inner}")
        return ListField(inner, length, start, self._at)

    def strings(self, field: ListField) -> list[bytes]:
        """The items of a list of strings whose bounds were checked."""
        raw, at, items = self._data[field.start : field.end], 0, []
        for _ in range(field.length):
            end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
            items.append(raw[at + 8 : end])
            at = end
        return items

    def numbers(self, field: ListField) -> npt.NDArray[Any]:
        """The items of a list of numbers whose bounds were checked."""
        return np.frombuffer(self._data[field.start : field.end], dtype=np.dtype(f"<{_SCALARS[field.item_type]}"))

    def _scalar(self, code: str) -> Any:
        value = struct.unpack_from(f"<{code}", self._data, self._at)[0]
        self._at += struct.calcsize(code)
        return value

    def _count(self) -> int:
        count = int(self._scalar("Q"))
        if count > _MAX_ITEMS:
            raise ValueError(f"a count of {count}")
        return count

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise ValueError("it ends too soon")

    def _string(self) -> str:
        length = int(self._scalar("Q"))
        start = self._at
        self._skip(length)
        return self._data[start : start + length].decode("utf-8", errors="surrogateescape")
