"""`edge-prm bench` and its parts: options here, work in edge_prm_bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_prm.aggregate import AGGREGATES
from edge_prm.cli import options as shared
from edge_prm.cli import verbosity
from edge_prm.cli.bench_output import Outputs, print_unreadable_rows
from edge_prm.cli.bench_reference import reference
from edge_prm.cli.command import INPUT, MEASUREMENT, OUTPUT, SCORING, Command, option, options
from edge_prm.cli.group import Group, nearest
from edge_prm.exit_codes import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from edge_prm_bench.results import Options

_FILE = click.Path(path_type=Path)
_LENGTHS = "128,512,2048"
_OUTPUTS = ("output", "report", "markdown", "as_json")


class _SuiteByDefault(Group):
    """`bench BUNDLE...` means `bench suite BUNDLE...`: a first argument that is not the name of a part is a bundle."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Parse the arguments, with `suite` in front where no part is named."""
        completes = context.resilient_parsing and not arguments  # a shell then wants the names of the parts
        if not completes and (not arguments or arguments[0] not in (*self.commands, *context.help_option_names)):
            arguments = ["suite", *arguments]
        return super().parse_args(context, arguments)


_bundles = click.argument("bundles", nargs=-1, metavar="[BUNDLE]...", type=_FILE)
_output = options(
    option("-o", "--output", section=OUTPUT, type=_FILE, help="Write all figures to this file, as one JSON document."),
    option("--report", section=OUTPUT, type=_FILE, help="Write the HTML report to this file."),
    option("--markdown", section=OUTPUT, type=_FILE, help="Write the tables to this file, as Markdown."),
    option("--json", "as_json", section=OUTPUT, is_flag=True,
           help="Print one JSON document on stdout in place of the tables."),
)  # fmt: skip
_data = options(
    option("--data", section=INPUT, multiple=True, type=_FILE,
           help="File of rows to score, in any usual format. Repeatable."),
    option("--limit", section=INPUT, type=click.IntRange(min=0),
           help="Traces of each file, 0 for all (default: as many as the reference has, or 64)."),
    shared.split,
    shared.fields,
    option("--aggregate", section=SCORING, type=click.Choice(tuple(AGGREGATES)),
           help="Aggregation of step rewards (default: the head's own)."),
    option("--threshold", section=SCORING, type=click.FloatRange(0, 1), default=0.5, show_default=True,
           help="Count a step with a reward below this as wrong."),
)  # fmt: skip
_references = option(
    "--reference", "references", section=INPUT, multiple=True, type=_FILE,
    help="Rewards in full precision: a file of `bench reference`, or an fp32 bundle. Repeatable.",
)  # fmt: skip
_fit = option(
    "--fit", section=SCORING, type=_FILE, help="Fit the threshold of F1 on this labelled file, and apply it to --data."
)
_speed = options(
    option("--lengths", section=MEASUREMENT, default=_LENGTHS, show_default=True,
           help="Lengths in tokens of the texts that are timed."),
    option("--runs", section=MEASUREMENT, type=click.IntRange(min=2), default=5, show_default=True,
           help="Runs of each length."),
    option("--sweep", section=MEASUREMENT, default="", metavar="1,2,...", help="Numbers of threads to time as well."),
)  # fmt: skip
_peers = option(
    "--peer", "peers", section=INPUT, multiple=True, type=_FILE, help="Figures of other engines, as JSON lines."
)


@click.group(
    cls=_SuiteByDefault,
    subcommand_metavar="[PART] [BUNDLE]...",
    examples=(
        "edge-prm bench",
        "edge-prm bench prm-int8 prm-fp32 --data traces.jsonl --reference full.jsonl --report report.html",
    ),
)
def bench() -> None:
    """Benchmark bundles on this device: latency, memory, fidelity, quality.

    `edge-prm bench BUNDLE...` runs all of it (the same as `edge-prm bench suite`). Without a bundle it runs on the
    embedded demo. `edge-prm bench suite --help` lists the options.

    Exit code 1: a bundle, reference, file or row failed, and the others were measured.
    """


def _part(name: str, *examples: str) -> Callable[[Any], click.Command]:
    return bench.command(name, cls=Command, examples=examples)


@_part("suite", "edge-prm bench suite prm-int8 --data traces.jsonl --reference full.jsonl --json")
@_bundles
@_data
@_references
@_fit
@_speed
@_peers
@shared.engine
@_output
def suite(bundles: tuple[Path, ...], **given: Any) -> None:
    """Measure latency, memory, fidelity and quality."""
    _run(bundles, ("latency", "fidelity", "quality"), given)


@_part("latency", "edge-prm bench latency prm-int8 --lengths 512 --threads 2 --sweep 1,2,4")
@_bundles
@_speed
@_peers
@shared.engine
@_output
def latency(bundles: tuple[Path, ...], **given: Any) -> None:
    """Measure load, prefill, push, rank, memory and energy."""
    _run(bundles, ("latency",), given)


@_part("fidelity", "edge-prm bench fidelity prm-int8 --data traces.jsonl --reference full.jsonl --markdown table.md")
@_bundles
@_data
@_references
@_peers
@shared.engine
@_output
def fidelity(bundles: tuple[Path, ...], **given: Any) -> None:
    """Compare rewards with full precision, and with a larger model."""
    _run(bundles, ("fidelity",), given)


@_part("quality", "edge-prm bench quality prm-int8 --data math.jsonl --fit gsm8k.jsonl -o figures.json")
@_bundles
@_data
@_references
@_fit
@shared.engine
@_output
def quality(bundles: tuple[Path, ...], **given: Any) -> None:
    """Compare rewards with labels: first wrong steps, and best of N."""
    _run(bundles, ("quality",), given)


bench.add_command(reference)


def _run(bundles: tuple[Path, ...], parts: tuple[str, ...], given: dict[str, Any]) -> None:
    """Run parts of the suite; print what they measured, then write it."""
    from edge_prm_bench import check_modules
    from edge_prm_bench.suite import run_suite

    outputs = Outputs(**{name: given.pop(name) for name in _OUTPUTS})
    _check_bundles(bundles)
    check_modules(parts, report=outputs.report is not None)
    outputs.check(_inputs(given))
    chosen = _suite_options(parts, given)
    with ExitStack() as stack:
        if not bundles:
            bundles, chosen = stack.enter_context(_demo_pair(chosen))
        results = run_suite(bundles, chosen, verbosity.progress)
    outputs.put(results)
    unreadable = print_unreadable_rows(results)
    if results.failures or unreadable:
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _demo_pair(chosen: Options) -> Any:
    """The embedded pair: the benchmark never imports the exporter, so the exporter is handed to it."""
    from edge_prm_bench.demo import demo_pair
    from edge_prm_export import export

    return demo_pair(chosen, export, verbosity.progress)


def _check_bundles(bundles: Sequence[Path]) -> None:
    """UsageError for what looks like a mistyped part of the benchmark and is no folder."""
    for bundle in bundles:
        if len(bundle.parts) != 1 or bundle.exists():
            continue
        if near := nearest(bundle.name, bench.commands):
            raise click.UsageError(
                f"there is no bundle {bundle} here and no part of that name; for the part {near}, write "
                f"`edge-prm bench {near} ...`"
            )


def _inputs(given: dict[str, Any]) -> list[Path]:
    """The files that a run reads, which no output may replace."""
    files = [path for name in ("data", "references", "peers") for path in given.get(name) or ()]
    fit = given.get("fit")
    return files if fit is None else [*files, fit]


def _suite_options(parts: tuple[str, ...], given: dict[str, Any]) -> Options:
    """The options of the command line as those of the suite."""
    from edge_prm_bench.baselines import read_baselines
    from edge_prm_bench.engine import Engine
    from edge_prm_bench.results import Options

    if "data" in given:
        given["fields"] = shared.take_fields(given)
    given["peers"] = read_baselines(given.get("peers", ()))
    given["engine"] = Engine(*(given.pop(name) for name in ("threads", "device", "gpu_layers", "provider")))
    for name in ("lengths", "sweep"):
        if name in given:
            given[name] = _numbers(name, given[name])
    if given.get("threshold", 0.0) != given.get("threshold", 0.0):
        raise click.BadParameter("nan is not a number between 0 and 1", param_hint="--threshold")
    return Options.of(parts=parts, **given)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of an option such as 128,512."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers) or (not numbers and name == "lengths"):
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 128,512", param_hint=f"--{name}")
    return numbers
