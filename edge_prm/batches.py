"""Texts that a device computes in one run: which of them go together.

A GPU is fast only with many rows. Texts of like length are padded to the longest of their batch, within a limit of
tokens that bounds the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

WINDOW = 64
"""Texts that are looked at together: read ahead of what the caller asked for."""


def windows(items: Iterable[T], size: int = WINDOW) -> Iterator[list[T]]:
    """Lists of at most `size` items, in order."""
    remaining = iter(items)
    while window := list(islice(remaining, size)):
        yield window


def plan(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of texts by batch, of like length, so that a batch has at most `most` tokens with its padding.

    A text that is longer than `most` is a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * longest <= most:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches
