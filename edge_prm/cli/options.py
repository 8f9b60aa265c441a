"""Options that several commands share, each defined once, with the section of the help that lists it."""

from __future__ import annotations

from typing import Any

import click

from edge_prm.aggregate import AGGREGATES
from edge_prm.cli.command import CONVENTIONS, ENGINE, INPUT, OUTPUT, SCORING, option, options
from edge_prm.cli.escapes import unescaped


def _checked_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A device as `edge_prm.load` takes it; BadParameter for anything else, before a bundle is loaded."""
    from edge_prm.backends.options import device_of
    from edge_prm.errors import InputError

    try:
        device_of(value)
    except InputError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return value


def _devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Completions of --device for a shell."""
    from edge_prm.backends.options import DEVICES

    return [name for name in DEVICES if name.startswith(incomplete)]


threads = option(
    "--threads", section=ENGINE, type=click.IntRange(min=1), help="Threads of the engine (default: one per core)."
)
device = option(
    "--device", section=ENGINE, callback=_checked_device, shell_complete=_devices, default="auto", show_default=True,
    metavar="auto|cpu|gpu|cuda[:N]",
    help="Device to run on. gpu: the GPU that the engine has; cuda:1: the second card; auto: the GPU if bundle and "
    "engine can use one.",
)  # fmt: skip
gpu_layers = option(
    "--gpu-layers", section=ENGINE, type=click.IntRange(min=0),
    help="Layers of a GGUF bundle to place on the GPU (default: all).",
)  # fmt: skip
provider = option(
    "--provider", section=ENGINE, metavar="NAME",
    help="Execution provider of ONNX Runtime in place of the device: directml, coreml, openvino, webgpu, or its own "
    "name.",
)  # fmt: skip
engine = options(threads, device, gpu_layers, provider)
revision = option("--revision", section=INPUT, help="Revision of a hub id: a branch, tag or commit.")
yes = option("-y", "--yes", section=INPUT, is_flag=True, help="Download a checkpoint without asking.")
as_json = option("--json", "as_json", section=OUTPUT, is_flag=True, help="Print JSON on stdout, for programs.")
aggregate = option(
    "--aggregate", section=SCORING, type=click.Choice(tuple(AGGREGATES)),
    help="Aggregation of step rewards (default: the bundle's).",
)  # fmt: skip
weak = option(
    "--weak-below", section=SCORING, type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="Mark the first step with a reward below this.",
)  # fmt: skip
split = option(
    "--split", section=INPUT, default="auto", show_default=True, metavar="auto|blank|lines|REGEX",
    help="What separates the steps of a completion. auto: blank lines, or the bundle's own separator.",
)  # fmt: skip
strict = option("--strict", section=INPUT, is_flag=True, help="Stop at the first row or candidate that fails.")
conventions = options(
    option(
        "--format", section=CONVENTIONS, metavar="NAME",
        help="Input convention: reasonflux, qwen-math-prm, trl, math-shepherd, rlhflow, er-prm or skywork-o1 (default: "
        "by the checkpoint's head). The options below override its parts.",
    ),
    option(
        "--separator", section=CONVENTIONS, callback=unescaped,
        help="Step separator: a token, text or tag (default: the checkpoint's). \\n and \\t are a newline and a tab.",
    ),
    option(
        "--good-token", section=CONVENTIONS,
        help="Positive label token, as spelled in the vocabulary: reward = P(good) / (P(good) + P(bad)).",
    ),
    option("--bad-token", section=CONVENTIONS, help="Negative label token, as spelled in the vocabulary."),
    option(
        "--between", section=CONVENTIONS, callback=unescaped,
        help="With --good-token: text between prompt and steps (default: one space).",
    ),
    option(
        "--after-step", section=CONVENTIONS, callback=unescaped,
        help="With --good-token and --separator: text after each step tag (default: a newline).",
    ),
)  # fmt: skip
"""What describes a checkpoint that does not describe itself, for `export` and `bench reference`."""
fields = options(
    option(
        "--prompt-field", section=INPUT, metavar="NAME",
        help="Field of the problem. A dot selects inside an object or list: doc.question.",
    ),
    option("--steps-field", section=INPUT, metavar="NAME", help="Field that holds the list of steps."),
    option(
        "--completion-field", section=INPUT, metavar="NAME", help="Field of the answer as text: messages.-1.content."
    ),
    option("--candidates-field", section=INPUT, metavar="NAME", help="Field that holds the list of candidates."),
    option("--id-field", section=INPUT, metavar="NAME", help="Field of the row's id."),
)  # fmt: skip
"""Names of fields in place of those that are detected; `take_fields` reads them."""


def token_pair(good: str | None, bad: str | None) -> tuple[str, str] | None:
    """The positive and the negative label token, or None; InputError for one without the other."""
    from edge_prm.errors import InputError

    if good is None and bad is None:
        return None
    if good is None or bad is None:
        raise InputError("--good-token and --bad-token go together: the probability of one against the other")
    return good, bad


def take_fields(given: dict[str, Any]) -> Any:
    """Remove the `fields` options from `given` and return them as a `records.Fields`."""
    from edge_prm.records import Fields

    names = ("prompt", "steps", "completion", "candidates", "id")
    return Fields(**{name: given.pop(f"{name}_field") for name in names})
