"""`python -m edge_prm`, and what the `edge-prm` script starts: the command line, ready for Ctrl-C from its start."""

from __future__ import annotations

from edge_prm import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.run(_command)


def _command() -> None:
    from edge_prm.cli.main import main as command  # noqa: TID251  # it imports click, after the handler is there

    command()


if __name__ == "__main__":
    main()
