"""Warnings of edge-prm: what a caller should know though the work went on. Python's `warnings` carries them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


class EdgePRMWarning(UserWarning):
    """Root of every warning that edge-prm gives."""


class AmbiguousSourceWarning(EdgePRMWarning):
    """A source names an embedded checkpoint, and a folder of that name exists here too."""


class AmbiguousHeadWarning(EdgePRMWarning):
    """A head is taken for one kind, and the checkpoint does not name its kind."""


class ToleranceWarning(EdgePRMWarning):
    """An exported bundle is further from full precision than its recipe allows."""


class SlowDeviceWarning(EdgePRMWarning):
    """A bundle for GPUs runs on the CPU, because device `auto` found no GPU that its engine can use."""


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Show our warnings in the block as one line each on stderr, without Python's file names and source lines."""
    import click

    with warnings.catch_warnings():  # restores `showwarning` too
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, EdgePRMWarning):
                click.echo(f"Warning: {message}", err=True)
            else:
                usual(message, category, *place, **more)

        warnings.simplefilter("always", EdgePRMWarning)
        warnings.showwarning = show
        yield
