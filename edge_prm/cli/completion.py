"""`edge-prm completion`: the script that teaches a shell to complete the command line."""

from __future__ import annotations

import click

from edge_prm.cli.command import Command
from edge_prm.cli.group import COMPLETE_VARIABLE

SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Command,
    examples=(
        'eval "$(edge-prm completion bash)"  # in ~/.bashrc',
        'eval "$(edge-prm completion zsh)"  # in ~/.zshrc',
        "edge-prm completion fish > ~/.config/fish/completions/edge-prm.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in a shell.

    Evaluate it when the shell starts, as the examples show.
    """
    from click.shell_completion import get_completion_class

    main = context.find_root()
    completer = get_completion_class(shell)
    assert completer is not None, "click knows these shells"
    script = completer(main.command, {}, str(main.info_name), COMPLETE_VARIABLE)
    click.echo(script.source_template % script.source_vars())
