"""The commands and options of click, with what the help of edge-prm adds: sections of options, and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from edge_prm.cli import verbosity

Function = TypeVar("Function", bound=Callable[..., Any])

INPUT = "Input"
ENGINE = "Model and engine"
RECIPE = "Recipe"
CONVENTIONS = "Head and format conventions"
SCORING = "Scoring"
MEASUREMENT = "Measurement"
OUTPUT = "Output"
GENERAL = "General"
SECTIONS = (INPUT, ENGINE, RECIPE, CONVENTIONS, SCORING, MEASUREMENT, OUTPUT, GENERAL)
"""Headings of options in the help, in the order in which they are printed."""


class Option(click.Option):
    """An option that is listed under a heading of the help."""

    def __init__(self, *arguments: Any, section: str = GENERAL, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


def option(*names: str, section: str, **attributes: Any) -> Callable[[Function], Function]:
    """`click.option` with the section of the help that lists it, one of SECTIONS."""
    return click.option(*names, cls=Option, section=section, **attributes)


def options(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order given."""

    def apply(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class Command(click.Command):
    """A command whose help has sections of options and examples, and that takes --quiet and --verbose.

    `examples` are command lines; a comment after two blanks and `#` says what an example does.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = tuple(examples)
        self.params += verbosity_options()

    def invoke(self, context: click.Context) -> Any:
        """Run the command, with as many messages as were chosen."""
        with verbosity.applied(context):
            return super().invoke(context)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each under its heading."""
        write_options(self.get_params(context), context, formatter)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


def verbosity_options() -> list[click.Parameter]:
    """--quiet and --verbose, which every command takes, and `edge-prm` itself."""
    return [
        Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=verbosity.remember,
            help="Print errors only on stderr: no progress, notes or warnings.",
        ),
        Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=verbosity.remember,
            help="Print the log on stderr; -vv prints details.",
        ),
    ]  # fmt: skip


def write_options(
    parameters: Iterable[click.Parameter], context: click.Context, formatter: click.HelpFormatter
) -> None:
    """Write options section by section; one without a section, such as --help, is in the last one."""
    records: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            records[getattr(parameter, "section", GENERAL)].append(record)
    for section, rows in records.items():
        if rows:
            with formatter.section(f"{section} options"):
                formatter.write_dl(rows)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write examples as they are: a command line must not be wrapped."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
