"""Reads the header of a GGUF file: its metadata, and where its tensors stand. What a file cannot hold is an error.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STRING, ARRAY = 8, 9  # types of metadata
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MOST_ITEMS = 1 << 22
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Array:
    """A list in the metadata; its items stay in the file, from `start` to `end`."""

    kind: int
    length: int
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    fields: Mapping[str, Any]
    tensors: Mapping[str, tuple[tuple[int, ...], int, int]]
    """name -> (shape, outermost dimension first; ggml type; offset into the data)."""
    data_start: int


class Reader:
    """Reads little-endian values; what the file cannot hold is a ValueError or struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self.places: dict[str, int] = {}

    def header(self) -> Header:
        if self._data[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        tensors, fields = self._count(), self._count()
        values: dict[str, Any] = {}
        for _ in range(fields):
            name = self._string()
            if name in values:
                raise ValueError(f"{name[:60]!r} stands there twice")
            kind = self._scalar("I")
            self.places[name] = self._at
            values[name] = self._value(kind)
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name, dimensions = self._string(), self._scalar("I")
            if dimensions > 4 or name in found:
                raise ValueError(f"tensor {name[:60]!r} has {dimensions} dimensions or stands there twice")
            shape = tuple(int(self._scalar("Q")) for _ in range(dimensions))[::-1]
            found[name] = (shape, int(self._scalar("I")), int(self._scalar("Q")))
        return Header(values, found, -(-self._at // 32) * 32)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise ValueError(f"a value of type {kind}")
        inner, length = self._scalar("I"), self._count()
        start = self._at
        if inner in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[inner]))
        elif inner == STRING:
            for _ in range(length):
                self._skip(self._scalar("Q"))
        else:
            raise ValueError(f"a list of type {inner}")
        return Array(inner, length, start, self._at)

    def strings(self, array: Array) -> list[bytes]:
        """The items of a list of strings whose bounds were checked."""
        raw, at, items = self._data[array.start : array.end], 0, []
        for _ in range(array.length):
            end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
            items.append(raw[at + 8 : end])
            at = end
        return items

    def numbers(self, array: Array) -> npt.NDArray[Any]:
        """The items of a list of numbers whose bounds were checked."""
        return np.frombuffer(self._data[array.start : array.end], dtype=np.dtype(f"<{_SCALARS[array.kind]}"))

    def _scalar(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _count(self) -> int:
        count = int(self._scalar("Q"))
        if count > _MOST_ITEMS:
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


def read_tensors(path: Path) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """name -> (shape, outermost dimension first; ggml type; offset into the file) of a file that was checked."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = Reader(data).header()
    return {name: (shape, kind, header.data_start + at) for name, (shape, kind, at) in header.tensors.items()}


def place_of(path: Path, field: str) -> int:
    """Where in a file that was checked a number of its metadata stands."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = Reader(data)
        reader.header()
    return reader.places[field]
