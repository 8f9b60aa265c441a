"""Options that several commands share, each defined once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edge_prm.aggregate import AGGREGATES
from edge_prm.cli.escapes import unescaped

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order given."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


threads = click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine (default: one per core).")
device = click.option(
    "--device", type=click.Choice(("auto", "cpu", "gpu")), default="auto", show_default=True, help="gpu: GGUF bundles."
)
gpu_layers = click.option("--gpu-layers", type=click.IntRange(min=0), help="Layers that the GPU holds (default: all).")
as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of the terminal view.")
aggregate = click.option(
    "--aggregate", type=click.Choice(tuple(AGGREGATES)), help="Aggregation of step rewards (default: the bundle's)."
)
split = click.option(
    "--split",
    default="auto",
    show_default=True,
    metavar="auto|blank|lines|REGEX",
    help="What separates the steps of a completion. auto: blank lines, or the bundle's own separator.",
)
strict = click.option("--strict", is_flag=True, help="Stop at the first bad row.")
weak = click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="A step below this is weak."
)
conventions = options(
    click.option(
        "--format",
        "convention",
        metavar="NAME",
        help="Input convention: reasonflux, qwen-math-prm, trl, math-shepherd, rlhflow, er-prm or skywork-o1 "
        "(default: by the checkpoint's head). The next options override its pieces.",
    ),
    click.option(
        "--separator",
        callback=unescaped,
        help="Step separator: a token, text or tag (default: the checkpoint's); \\n and \\t are read.",
    ),
    click.option("--good-token", help="No head: judge by the probability of this token, as the vocabulary has it ..."),
    click.option("--bad-token", help="... against this one."),
    click.option(
        "--between", callback=unescaped, help="With --good-token: text between prompt and steps (default: a blank)."
    ),
    click.option(
        "--after-step",
        callback=unescaped,
        help="With --good-token and --separator: text after each step tag (default: a newline).",
    ),
)
"""What describes a checkpoint that does not describe itself, for `export` and `bench reference`."""
fields = options(
    click.option("--prompt-field", metavar="NAME", help="Field of the problem; a dot leads inside: doc.question."),
    click.option("--steps-field", metavar="NAME", help="Field that holds the list of steps."),
    click.option("--completion-field", metavar="NAME", help="Field of the answer as text; messages.-1.content."),
    click.option("--candidates-field", metavar="NAME", help="Field that holds the list of candidates."),
    click.option("--id-field", metavar="NAME", help="Field of the row's id."),
)
"""Names of fields in place of those that are detected; `take_fields` reads them."""


def token_pair(good: str | None, bad: str | None) -> tuple[str, str] | None:
    """The two label tokens, or None; InputError for one without the other."""
    from edge_prm.errors import InputError

    if good is None and bad is None:
        return None
    if good is None or bad is None:
        raise InputError("--good-token and --bad-token go together: the probability of one against the other")
    return good, bad


def take_fields(given: dict[str, Any]) -> Any:
    """Remove the `fields` options from `given` and return them as a `records.Fields`."""
    from edge_prm.records import Fields

    return Fields(
        **{name: given.pop(f"{name}_field") for name in ("prompt", "steps", "completion", "candidates", "id")}
    )
