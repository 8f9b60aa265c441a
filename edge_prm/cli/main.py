"""The `edge-prm` command: its commands are put together here, and each is in a module of its own.

The modules import what a command needs when it runs, so that `edge-prm --help` is fast and works in the base install.
"""

from __future__ import annotations

if __name__ == "__main__":  # as early as possible: an interrupt may come during the imports
    from edge_prm.interrupts import watch

    watch()

import click

from edge_prm import __version__, interrupts
from edge_prm.cli.bench import bench
from edge_prm.cli.bundle import check, info
from edge_prm.cli.completion import completion
from edge_prm.cli.demo import demo
from edge_prm.cli.doctor import doctor
from edge_prm.cli.export import export
from edge_prm.cli.group import MainGroup
from edge_prm.cli.rows import show_rows
from edge_prm.cli.score import rank, score


@click.group(
    "edge-prm",
    cls=MainGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        "edge-prm demo",
        "edge-prm export ./ReasonFlux-PRM-1.5B --int8 -o prm-int8",
        "edge-prm score prm-int8 traces.jsonl",
        "edge-prm COMMAND --help",
    ),
)
@click.version_option(__version__, prog_name="edge-prm")
def main() -> None:
    """Run process reward models (PRMs) locally.

    Try `edge-prm demo` first: it needs no checkpoint of your own. With --json, a command prints its results as JSON on
    stdout (one document, or one line for each row) and everything else on stderr.
    """


for _command in (demo, doctor, export, info, check, show_rows, score, rank, bench, completion):
    main.add_command(_command)


if __name__ == "__main__":
    interrupts.run(main)
