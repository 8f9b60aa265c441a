"""`edge-prm demo`: the main job on the embedded checkpoints; `edge_prm.cli.demo_run` does the work."""

from __future__ import annotations

import json

import click

from edge_prm.cli import options as shared
from edge_prm.cli import verbosity
from edge_prm.cli.command import Command


@click.command(cls=Command, examples=("edge-prm demo", "edge-prm demo --json"))
@shared.threads
@shared.as_json
def demo(threads: int | None, as_json: bool) -> None:
    """Export the embedded demo checkpoint, and score and rank with it.

    The int8 bundle is compared with full precision and with a larger reference, which are embedded too. Nothing is
    downloaded, and nothing is kept.
    """
    from edge_prm.cli.demo_run import run_demo

    facts = run_demo(threads, verbosity.progress, (lambda line: None) if as_json else click.echo)
    if as_json:
        click.echo(json.dumps(facts))
