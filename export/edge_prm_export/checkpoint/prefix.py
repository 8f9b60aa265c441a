"""Names of a decoder that was saved without the language model around it: they lack the prefix `model.`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

PREFIX = "model."
BARE = ("embed_tokens.", "layers.", "norm.")
"""How the names of a decoder begin that was saved without the language model."""


def is_bare(names: Iterable[str]) -> bool:
    """Whether a decoder's names lack the prefix `model.`, and no other tensor has it."""
    present = set(names)
    return "embed_tokens.weight" in present and not any(name.startswith(PREFIX) for name in present)


def with_prefix(entries: Mapping[str, T]) -> dict[str, T]:
    """The entries of a bare decoder under the names of a language model; entries of other decoders as they are."""
    if not is_bare(entries):
        return dict(entries)
    return {PREFIX + name if name.startswith(BARE) else name: entry for name, entry in entries.items()}
