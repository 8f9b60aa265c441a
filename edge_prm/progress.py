"""Progress of long work, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress on stderr: a bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        click.echo(f"{label}...", err=True)
        yield lambda done: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update
