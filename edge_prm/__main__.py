"""The start of the command line, by `python -m edge_prm` or the `edge-prm` script; Ctrl-C is handled from here on."""

from __future__ import annotations

from edge_prm import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.run(_command)


def _command() -> None:
    from edge_prm.cli.main import main as command  # noqa: TID251  # imports click once Ctrl-C is handled

    command()


if __name__ == "__main__":
    main()
