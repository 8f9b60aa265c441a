"""Groups of commands: the list of commands, mistyped names, and the one place where errors become messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import click

from edge_prm import interrupts
from edge_prm.cli.command import Command, verbosity_options, write_examples, write_options
from edge_prm.cli.terminal import colour, serve_any_encoding
from edge_prm.exit_codes import EXIT_BAD_INPUT, MEANINGS
from edge_prm.notices import on_stderr

COMPLETE_VARIABLE = "_EDGE_PRM_COMPLETE"
"""Environment variable through which a shell asks for completions."""


def nearest(typed: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant; None where none is near."""
    near = difflib.get_close_matches(typed.lower(), list(names), n=1, cutoff=0.7)
    return near[0] if near else None


class Group(click.Group):
    """A group whose help has complete first sentences, sections of options and examples.

    A mistyped command is answered with the nearest name.
    """

    command_class = Command

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = tuple(examples)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; UsageError that names the nearest one where there is none."""
        name = arguments[0]
        if not name.startswith("-") and self.get_command(context, name) is None and not context.resilient_parsing:
            raise click.UsageError(f"there is no command {name!r}; {self._hint(name, context)}", context)
        return super().resolve_command(context, arguments)

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which they were added."""
        return list(self.commands)

    def _hint(self, typed: str, context: click.Context) -> str:
        """What to write in place of a mistyped command; commands of a group in this one are found as well."""
        names = {name: name for name in self.commands}
        for name, command in self.commands.items():
            for part in getattr(command, "commands", ()):
                names.setdefault(part, f"{name} {part}")
        if near := nearest(typed, names):
            return f"did you mean `{context.command_path} {names[near]}`?"
        return f"choose one of {', '.join(self.commands)}"

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        self.format_commands(context, formatter)
        write_options(self.get_params(context), context, formatter)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the complete first sentence of its help."""
        commands = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [(name, command.get_short_help_str(1000)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


class MainGroup(Group):
    """The `edge-prm` command.

    It turns errors that are raised on purpose, and interrupts, into one line on stderr and an exit code
    (edge_prm.exit_codes). Any other error is a bug and is shown with its traceback.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += verbosity_options()

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, under its own name however it was started."""
        serve_any_encoding()
        options.setdefault("color", colour())
        options["prog_name"], options["complete_var"] = self.name, COMPLETE_VARIABLE
        return super().main(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:
        """Run the command that is named in the arguments."""
        from edge_prm.errors import EdgePRMError

        try:
            interrupts.begin()
            with on_stderr():
                return super().invoke(context)
        except BaseException as error:
            # A library may turn a KeyboardInterrupt into another exception.
            if interrupts.interrupted() or isinstance(error, KeyboardInterrupt):
                interrupts.leave()
            if not isinstance(error, EdgePRMError):
                raise
            click.echo(f"Error: {error}", err=True)
            context.exit(EXIT_BAD_INPUT)
        finally:
            interrupts.end()

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and the exit codes."""
        super().format_epilog(context, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])
