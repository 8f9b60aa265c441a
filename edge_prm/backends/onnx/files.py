"""Which files an ONNX graph asks for, read without onnx, before an engine sees the graph.

A graph names the files of its weights itself (`external_data` of a tensor), and an engine opens what it names. A bundle
may name only files of its own manifest: those are verified, and lie in its folder. Some engines also take a special
name for an address in memory.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from edge_prm.errors import BundleIntegrityError

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)
_CHILDREN: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {13: _ENTRY},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _ENTRY: {},
}
"""Message -> number of a field that holds, or may hold, a tensor -> message of that field."""

_DEEPEST = 100  # what protobuf itself reads at most


def check_external_data(path: Path, listed: Collection[str]) -> None:
    """BundleIntegrityError unless all files that a graph asks for are listed in the manifest, or when it is damaged."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for location in _locations(data, 0, len(data), _MODEL, 0):
                if location not in listed:
                    raise BundleIntegrityError(
                        path, f"its graph asks for the file {location[:80]!r}, which the manifest does not list"
                    )
    except OSError as error:
        raise BundleIntegrityError(path, f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BundleIntegrityError(path, f"not an ONNX graph ({error})") from None


def _locations(data: mmap.mmap, start: int, end: int, message: int, depth: int) -> Iterator[str]:
    """Yield the value of every `location` in a message that lies at `start:end`."""
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deeply")
    children = _CHILDREN[message]
    for number, first, last in _fields(data, start, end):
        if number in children and children[number] == _ENTRY:
            texts = {key: data[at:stop] for key, at, stop in _fields(data, first, last)}
            if texts.get(1) == b"location":
                yield texts.get(2, b"").decode("utf-8", errors="surrogateescape")
        elif number in children:
            yield from _locations(data, first, last, children[number], depth + 1)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, start and end of every field of a message that has a length; skip the others."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at, end)
            if length <= end - at:
                yield number, at, at + length
            at += length
        else:
            raise ValueError(f"a field of wire type {wire}")
        if at > end:
            raise ValueError("a field is longer than its message")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise ValueError("a number is cut off")
