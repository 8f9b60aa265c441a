"""How long work tells the caller where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is being done, how many steps it has) -> context that gives `advance(steps done)`."""


@contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:
    """Progress that says nothing: the default of the Python API."""
    yield lambda done: None
