"""`edge-prm bench` and its parts: options here, work in edge_prm_bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_prm.aggregate import AGGREGATES
from edge_prm.progress import show_progress

if TYPE_CHECKING:
    from edge_prm_bench.results import Options, Results
    from edge_prm_bench.torch_model import Described

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
_LENGTHS = "128,512,2048"
_EXIT_SOME_FAILED = 1


class _SuiteByDefault(click.Group):
    """`bench BUNDLE…` means `bench suite BUNDLE…`: what is not the name of a part is an argument of the whole."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *context.help_option_names):
            args = ["suite", *args]
        return super().parse_args(context, args)


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_bundles = click.argument("bundles", nargs=-1, metavar="[BUNDLE]...", type=_FILE)
_threads = click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine (default: one per core).")
_aggregate = click.option(
    "--aggregate", type=click.Choice(tuple(AGGREGATES)),
    help="From step rewards to a score (default: the head's own).",
)  # fmt: skip
_threshold = click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="A step below this is weak."
)
_output = _options(
    click.option("--json", "json_file", type=_FILE, help="Write all figures to this file."),
    click.option("--report", type=_FILE, help="Write the HTML report to this file."),
    click.option("--markdown", type=_FILE, help="Write the tables as Markdown to this file."),
)
_split = click.option(
    "--split", default="auto", show_default=True, metavar="auto|blank|lines|REGEX",
    help="What separates the steps of a completion (auto: blank lines if there are any, else lines).",
)  # fmt: skip
_data = _options(
    click.option("--data", multiple=True, type=_FILE, help="Rows to score: JSONL of the usual benchmarks. Repeatable."),
    click.option(
        "--limit", type=click.IntRange(min=0), help="Traces of each file, 0 for all (default: the reference's, or 64)."
    ),
    _split,
    _aggregate,
    _threshold,
)  # fmt: skip
_references = click.option(
    "--reference", "references", multiple=True, type=_FILE,
    help="Full precision to compare with: a file of `bench reference`, or an fp32 bundle. Repeatable.",
)  # fmt: skip
_fit = click.option("--fit", type=_FILE, help="Fit the threshold of F1 on this labelled file, and apply it to --data.")
_speed = _options(
    click.option("--lengths", default=_LENGTHS, show_default=True, help="Tokens of the texts that are timed."),
    click.option("--runs", type=click.IntRange(min=2), default=5, show_default=True, help="Runs of each length."),
    click.option("--sweep", default="", metavar="1,2,…", help="Numbers of threads to time as well."),
)
_peers = click.option("--peer", "peers", multiple=True, type=_FILE, help="Figures of other engines, as JSON lines.")


@click.group(cls=_SuiteByDefault)
def bench() -> None:
    """How fast, how big, how faithful: measure bundles on this device.

    `edge-prm bench BUNDLE...` runs all of it (the same as `edge-prm bench suite`), and without a bundle it runs on the
    embedded demo.
    """


@bench.command()
@_bundles
@_data
@_references
@_fit
@_speed
@_peers
@_threads
@_output
def suite(bundles: tuple[Path, ...], **given: Any) -> None:
    """Latency, memory, fidelity and quality, side by side."""
    _run(bundles, ("latency", "fidelity", "quality"), given)


@bench.command()
@_bundles
@_speed
@_peers
@_threads
@_output
def latency(bundles: tuple[Path, ...], **given: Any) -> None:
    """Load, prefill, push, rank, memory and energy."""
    _run(bundles, ("latency",), given)


@bench.command()
@_bundles
@_data
@_references
@_peers
@_threads
@_output
def fidelity(bundles: tuple[Path, ...], **given: Any) -> None:
    """Rewards against full precision, and against a larger model."""
    _run(bundles, ("fidelity",), given)


@bench.command()
@_bundles
@_data
@_references
@_fit
@_threads
@_output
def quality(bundles: tuple[Path, ...], **given: Any) -> None:
    """Rewards against labels: first wrong steps, and best of N."""
    _run(bundles, ("quality",), given)


@bench.command()
@click.argument("source")
@click.argument("data", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The file to write; an interrupted run is resumed.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first traces.")
@click.option(
    "--split", default="auto", show_default=True, metavar="auto|blank|lines|REGEX", help="What separates steps."
)
@click.option(
    "--dtype", type=click.Choice(("fp32", "bf16")), default="fp32", show_default=True, help="Precision of the weights."
)
@click.option(
    "--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True, help="Where torch runs."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Texts in one run.")
@click.option("--revision", help="Revision of a hub id.")
@click.option("--separator", help="What closes a step, as in `edge-prm export`.")
@click.option("--good-token", help="No head: judge by the probability of this token, as in `edge-prm export` ...")
@click.option("--bad-token", help="... against this one.")
@click.option("--between", help="With --good-token: text between prompt and steps (default: a blank).")
@click.option("--after-step", help="With --good-token and --separator: text after each tag (default: a newline).")
@_threads
def reference(
    source: str, data: Path, output: Path, limit: int | None, split: str, dtype: str, device: str, batch_size: int,
    revision: str | None, separator: str | None, good_token: str | None, bad_token: str | None, between: str | None,
    after_step: str | None, threads: int | None,
) -> None:  # fmt: skip
    """Score DATA once with a full-precision checkpoint in torch.

    SOURCE is a folder, a hub id, or one of the embedded `demo` and `demo-reference`. It is described as in
    `edge-prm export`, so that the reference reads the same text as the bundle. An interrupted run is resumed: nothing
    is lost, nothing is scored twice. Exit code 1 when a trace was not scored.
    """
    from edge_prm.errors import InputError
    from edge_prm_bench.data import read_data
    from edge_prm_bench.reference import make_reference

    if (good_token is None) != (bad_token is None):
        raise InputError("--good-token and --bad-token go together: the probability of one against the other")
    pair = (good_token, bad_token) if good_token is not None and bad_token is not None else None
    rows = read_data(data, limit=limit, split=split)
    made = make_reference(
        _described(source, revision, pair, separator, between, after_step), rows, output, dtype=dtype, device=device,
        batch_size=batch_size, threads=threads, progress=show_progress,
    )  # fmt: skip
    skipped = [row for row in made.rows if row.rewards is None]
    for row in skipped:
        click.echo(f"not scored: {row.id}: {row.skipped}", err=True)
    facts = {"reference": str(output), "traces": len(made.rows), "not_scored": len(skipped)}
    click.echo(json.dumps(facts | {"tokens": sum(row.tokens for row in made.rows)}))
    if skipped:
        click.get_current_context().exit(_EXIT_SOME_FAILED)


def _described(
    source: str, revision: str | None, pair: tuple[str, str] | None, separator: str | None, between: str | None,
    after_step: str | None,
) -> Described:  # fmt: skip
    """A checkpoint as the exporter describes it: the benchmark itself never imports the exporter."""
    from functools import partial
    from importlib.util import find_spec

    from edge_prm.errors import MissingExtraError

    needed = ("torch", "transformers", "safetensors", "ml_dtypes", "jinja2")
    if missing := [name for name in needed if _is_missing(name, find_spec)]:
        raise MissingExtraError("reference", missing)
    from edge_prm.encode import TOKENIZER_NAME
    from edge_prm.manifest import Recipe
    from edge_prm_bench.torch_model import Described
    from edge_prm_export.checkpoint import open_checkpoint
    from edge_prm_export.head import read_head
    from edge_prm_export.template import input_format
    from edge_prm_export.torch_checkpoint import OwnTokenizer, load_causal_lm, load_decoder
    from edge_prm_export.vocabulary import open_tokenizer, token_id
    from edge_prm_export.write_bundle import describe

    checkpoint = open_checkpoint(source, revision, native=False)
    head = read_head(checkpoint, pair)
    form = input_format(checkpoint, head.kind, separator, between, after_step, *head.tokens[:1])
    tokenizer = open_tokenizer(checkpoint)
    own = OwnTokenizer(checkpoint.folder, form, *head.tokens[:1])
    return Described(
        manifest=describe(checkpoint, head, form, "onnx", Recipe("fp32"), {}),
        tokenizer_file=checkpoint.folder / TOKENIZER_NAME,
        layers=() if head.tokens else head.layers,
        pair=tuple(token_id(checkpoint, tokenizer, token) for token in reversed(head.tokens)),
        load=partial(load_causal_lm if head.tokens else load_decoder, checkpoint),
        disagreement=own.disagreement,
        tokenizer=own.name,
    )


def _is_missing(name: str, find_spec: Callable[[str], Any]) -> bool:
    try:
        return find_spec(name) is None
    except ValueError:  # of a module that was put out of reach
        return True


def _run(bundles: tuple[Path, ...], parts: tuple[str, ...], given: dict[str, Any]) -> None:
    """Run parts of the suite and show, write and print what they measured."""
    from contextlib import ExitStack

    from edge_prm_bench import check_modules
    from edge_prm_bench.demo import demo_pair
    from edge_prm_bench.suite import run_suite

    outputs = {name: given.pop(name) for name in ("json_file", "report", "markdown")}
    check_modules()
    _check_outputs(outputs)
    options = _suite_options(parts, given)
    with ExitStack() as stack:
        if not bundles:
            bundles, options = stack.enter_context(demo_pair(options, show_progress))
        results = run_suite(bundles, options, show_progress)
    _show(results, **outputs)


def _suite_options(parts: tuple[str, ...], given: dict[str, Any]) -> Options:
    from edge_prm_bench.peers import read_peers
    from edge_prm_bench.results import Options

    given["peers"] = read_peers(given.get("peers", ()))
    for name in ("lengths", "sweep"):
        if name in given:
            given[name] = _numbers(name, given[name])
    return Options(parts=parts, **given)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers) or (not numbers and name == "lengths"):
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 128,512", param_hint=f"--{name}")
    return numbers


def _check_outputs(outputs: dict[str, Path | None]) -> None:
    """Before minutes of work, not after them."""
    from edge_prm.errors import ExportError

    for path in outputs.values():
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ExportError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}")


def _show(results: Results, json_file: Path | None, report: Path | None, markdown: Path | None) -> None:
    from edge_prm_bench import tables
    from edge_prm_bench.report import sentence, write_report

    document = json.dumps(results.as_dict(), ensure_ascii=False)
    if json_file is not None:
        json_file.write_text(json.dumps(results.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(tables.markdown(results), encoding="utf-8")
    if report is not None:
        write_report(results, report)
    click.echo(tables.hardware(results))
    for table in tables.tables(results):
        click.echo(f"\n{click.style(table.title, bold=True)}\n")
        click.echo(tables.as_text(table))
        if table.note:
            click.echo(click.style(table.note, dim=True))
    click.echo("")
    for bundle in results.bundles:
        click.echo(f"{click.style(bundle.name, bold=True)}: {sentence(results, bundle)}")
    click.echo(document)
