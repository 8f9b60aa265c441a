"""How much a command prints on stderr: --quiet, --verbose, and what depends on them.

Both options are stored in the context of click, which a command shares with its parents, so that they may be given
before or after the name of the command.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import click

from edge_prm.progress import show_progress

_KEY = "edge_prm.cli.verbosity."
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store the value of --quiet or --verbose: a callback of click."""
    if value:
        context.meta[f"{_KEY}{parameter.name}"] = value


def quiet() -> bool:
    """Whether the command that runs prints errors only."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(f"{_KEY}quiet"))


def note(text: str) -> None:
    """Print a line on stderr, unless --quiet is given."""
    if not quiet():
        click.echo(text, err=True)


def progress(label: str, total: int) -> AbstractContextManager[Any]:
    """Show progress on stderr, unless --quiet is given: see `edge_prm.progress.show_progress`."""
    return contextlib.nullcontext(_ignore) if quiet() else show_progress(label, total)


def _ignore(done: int) -> None:
    pass


class _OnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as a line with its level."""
        click.echo(f"{record.levelname.capitalize()}: {self.format(record)}", err=True)


@contextlib.contextmanager
def applied(context: click.Context) -> Iterator[None]:
    """Send the log of edge-prm to stderr during the block: warnings, more with --verbose, errors only with --quiet."""
    silent, verbose = (context.meta.get(f"{_KEY}{name}", 0) for name in ("quiet", "verbose"))
    if silent and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other", context)
    logger, handler = logging.getLogger("edge_prm"), _OnStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if silent else _LEVELS[min(verbose, 2)])
    try:
        with warnings.catch_warnings():
            if silent:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
