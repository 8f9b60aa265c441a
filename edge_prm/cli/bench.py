"""`edge-prm bench` and its parts: options here, work in edge_prm_bench."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_prm.aggregate import AGGREGATES
from edge_prm.cli import options as option
from edge_prm.exit_codes import EXIT_SOME_FAILED
from edge_prm.progress import show_progress

if TYPE_CHECKING:
    from edge_prm_bench.reference.torch_model import Described
    from edge_prm_bench.results import Options, Results

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
_LENGTHS = "128,512,2048"
_PARTS = ("suite", "latency", "fidelity", "quality", "reference")


class _SuiteByDefault(click.Group):
    """`bench BUNDLE…` means `bench suite BUNDLE…`: what is not the name of a part is an argument of the whole."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *context.help_option_names):
            args = ["suite", *args]
        return super().parse_args(context, args)


_bundles = click.argument("bundles", nargs=-1, metavar="[BUNDLE]...", type=_FILE)
_engine = option.options(option.threads, option.device, option.gpu_layers)
_aggregate = click.option(
    "--aggregate", type=click.Choice(tuple(AGGREGATES)),
    help="Aggregation of step rewards (default: the head's own).",
)  # fmt: skip
_output = option.options(
    click.option("--json", "json_file", type=_FILE, help="Write all figures to this file."),
    click.option("--report", type=_FILE, help="Write the HTML report to this file."),
    click.option("--markdown", type=_FILE, help="Write the tables as Markdown to this file."),
)
_data = option.options(
    click.option("--data", multiple=True, type=_FILE, help="Rows to score, of any usual format. Repeatable."),
    click.option(
        "--limit", type=click.IntRange(min=0), help="Traces of each file, 0 for all (default: the reference's, or 64)."
    ),
    option.split,
    option.fields,
    _aggregate,
    option.weak,
)  # fmt: skip
_references = click.option(
    "--reference", "references", multiple=True, type=_FILE,
    help="Full precision to compare with: a file of `bench reference`, or an fp32 bundle. Repeatable.",
)  # fmt: skip
_fit = click.option("--fit", type=_FILE, help="Fit the threshold of F1 on this labelled file, and apply it to --data.")
_speed = option.options(
    click.option("--lengths", default=_LENGTHS, show_default=True, help="Tokens of the texts that are timed."),
    click.option("--runs", type=click.IntRange(min=2), default=5, show_default=True, help="Runs of each length."),
    click.option("--sweep", default="", metavar="1,2,…", help="Numbers of threads to time as well."),
)
_peers = click.option("--peer", "peers", multiple=True, type=_FILE, help="Figures of other engines, as JSON lines.")


@click.group(cls=_SuiteByDefault)
def bench() -> None:
    """Benchmark bundles on this device: latency, memory, fidelity, quality.

    `edge-prm bench BUNDLE...` runs all of it (the same as `edge-prm bench suite`), and without a bundle it runs on the
    embedded demo. The last line of stdout is a JSON document. Exit code 1: a bundle, reference or file of several
    failed, and the others were measured.
    """


@bench.command()
@_bundles
@_data
@_references
@_fit
@_speed
@_peers
@_engine
@_output
def suite(bundles: tuple[Path, ...], **given: Any) -> None:
    """Latency, memory, fidelity and quality, side by side."""
    _run(bundles, ("latency", "fidelity", "quality"), given)


@bench.command()
@_bundles
@_speed
@_peers
@_engine
@_output
def latency(bundles: tuple[Path, ...], **given: Any) -> None:
    """Load, prefill, push, rank, memory and energy."""
    _run(bundles, ("latency",), given)


@bench.command()
@_bundles
@_data
@_references
@_peers
@_engine
@_output
def fidelity(bundles: tuple[Path, ...], **given: Any) -> None:
    """Rewards against full precision, and against a larger model."""
    _run(bundles, ("fidelity",), given)


@bench.command()
@_bundles
@_data
@_references
@_fit
@_engine
@_output
def quality(bundles: tuple[Path, ...], **given: Any) -> None:
    """Rewards against labels: first wrong steps, and best of N."""
    _run(bundles, ("quality",), given)


@bench.command()
@click.argument("source")
@click.argument("data", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The file to write; an interrupted run is resumed.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first traces.")
@option.split
@option.fields
@click.option(
    "--dtype", type=click.Choice(("fp32", "bf16")), default="fp32", show_default=True, help="Precision of the weights."
)
@click.option(
    "--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True, help="Where torch runs."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Texts in one run.")
@click.option("--revision", help="Revision of a hub id.")
@option.conventions
@option.threads
def reference(
    source: str, data: Path, output: Path, limit: int | None, split: str, dtype: str, device: str, batch_size: int,
    revision: str | None, convention: str | None, separator: str | None, good_token: str | None,
    bad_token: str | None, between: str | None, after_step: str | None, threads: int | None, **given: Any,
) -> None:  # fmt: skip
    """Score DATA once with a full-precision checkpoint in torch.

    SOURCE is a folder, a hub id, or one of the embedded `demo` and `demo-reference`. It is described as in
    `edge-prm export`, so that the reference reads the same text as the bundle. An interrupted run is resumed: nothing
    is lost, nothing is scored twice. Exit code 1 when a trace was not scored.
    """
    from edge_prm.printable import printable
    from edge_prm_bench.data import read_data
    from edge_prm_bench.reference.make import make_reference

    pair = option.token_pair(good_token, bad_token)
    described = _described(source, revision, pair, convention, separator, between, after_step)
    own = described.manifest.input.separator_text
    rows = read_data(
        data, limit=limit, split=split, fields=option.take_fields(given), separators=[own] if own else []
    )  # fmt: skip
    made = make_reference(
        described, rows, output, dtype=dtype, device=device,
        batch_size=batch_size, threads=threads, progress=show_progress,
    )  # fmt: skip
    for entry in rows.skipped:
        click.echo(f"not read: {data}, {entry.place}: {printable(entry.reason)}", err=True)
    skipped = [row for row in made.rows if row.rewards is None]
    for row in skipped:
        click.echo(f"not scored: {row.id}: {row.skipped}", err=True)
    facts = {
        "reference": str(output),
        "traces": len(made.rows),
        "not_scored": len(skipped),
        "not_read": len(rows.skipped),
    }
    click.echo(json.dumps(facts | {"tokens": sum(row.tokens for row in made.rows)}))
    if skipped or rows.skipped:
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _described(
    source: str, revision: str | None, pair: tuple[str, str] | None, convention: str | None, separator: str | None,
    between: str | None, after_step: str | None,
) -> Described:  # fmt: skip
    """A checkpoint as the exporter describes it: the benchmark itself never imports the exporter."""
    from functools import partial

    from edge_prm.extras import check_extra

    check_extra("reference")
    from edge_prm.encode import TOKENIZER_NAME
    from edge_prm.recipe import RECIPES
    from edge_prm_bench.reference.torch_model import Described
    from edge_prm_export.checkpoint.conventions import Given
    from edge_prm_export.checkpoint.files import open_checkpoint
    from edge_prm_export.checkpoint.template import head_and_format
    from edge_prm_export.checkpoint.tokenizer import open_tokenizer, token_id
    from edge_prm_export.exporter import describe
    from edge_prm_export.optimum.torch_checkpoint import OwnTokenizer, load_causal_lm, load_decoder

    checkpoint = open_checkpoint(source, revision, native=False)
    head, form = head_and_format(checkpoint, Given(convention, separator, between, after_step, pair))
    tokenizer = open_tokenizer(checkpoint)
    own = OwnTokenizer(checkpoint.folder, form, *head.tokens[:1])
    return Described(
        manifest=describe(checkpoint, head, form, RECIPES["onnx", "fp32"], {}),
        tokenizer_file=checkpoint.folder / TOKENIZER_NAME,
        layers=() if head.tokens else head.layers,
        pair=tuple(token_id(checkpoint, tokenizer, token) for token in reversed(head.tokens)),
        load=partial(load_causal_lm if head.tokens else load_decoder, checkpoint),
        disagreement=own.disagreement,
        tokenizer=own.name,
    )


def _run(bundles: tuple[Path, ...], parts: tuple[str, ...], given: dict[str, Any]) -> None:
    """Run parts of the suite; print what they measured, then write it."""
    from contextlib import ExitStack

    from edge_prm_bench import check_modules
    from edge_prm_bench.demo import demo_pair
    from edge_prm_bench.suite import run_suite

    outputs = {name: given.pop(name) for name in ("json_file", "report", "markdown")}
    _check_bundles(bundles)
    check_modules(parts, report=outputs["report"] is not None)
    inputs = [given.get(name) or () for name in ("data", "references", "peers")]
    _check_outputs(outputs, [*(path for paths in inputs for path in paths), *filter(None, [given.get("fit")])])
    options = _suite_options(parts, given)
    with ExitStack() as stack:
        if not bundles:
            from edge_prm_export import export

            bundles, options = stack.enter_context(demo_pair(options, export, show_progress))
        results = run_suite(bundles, options, show_progress)
    try:
        _print(results)
    finally:  # a pipe that was closed, or a fault of a table, does not lose the numbers
        _write(results, **outputs)
    bad = _name_bad_rows(results)
    if results.failures or bad:
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _name_bad_rows(results: Results) -> int:
    """Say on stderr which rows could not be read, by reason; the tables count them too. Returns their number."""
    from edge_prm.printable import printable

    found = [omission for omission in results.skipped if omission.unreadable]
    for omission in found:
        places = ", ".join(omission.examples)
        click.echo(f"Error: {printable(f'{omission.data}: {omission.count} {omission.reason} ({places})')}", err=True)
    return sum(omission.count for omission in found)


def _check_bundles(bundles: Sequence[Path]) -> None:
    """UsageError for what looks like a mistyped part of the benchmark and is no folder."""
    for bundle in bundles:
        if bundle.exists() or len(bundle.parts) != 1:
            continue
        if near := difflib.get_close_matches(bundle.name.lower(), _PARTS, n=1, cutoff=0.7):
            raise click.UsageError(
                f"there is no bundle {bundle} here and no part of that name; for the part {near[0]}, write "
                f"`edge-prm bench {near[0]} ...`"
            )


def _suite_options(parts: tuple[str, ...], given: dict[str, Any]) -> Options:
    from edge_prm_bench.baselines import read_baselines
    from edge_prm_bench.engine import Engine
    from edge_prm_bench.results import Options

    if "data" in given:
        given["fields"] = option.take_fields(given)
    given["peers"] = read_baselines(given.get("peers", ()))
    given["engine"] = Engine(*(given.pop(name) for name in ("threads", "device", "gpu_layers")))
    for name in ("lengths", "sweep"):
        if name in given:
            given[name] = _numbers(name, given[name])
    if given.get("threshold", 0.0) != given.get("threshold", 0.0):
        raise click.BadParameter("nan is not a number between 0 and 1", param_hint="--threshold")
    return Options.of(parts=parts, **given)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers) or (not numbers and name == "lengths"):
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 128,512", param_hint=f"--{name}")
    return numbers


def _check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path]) -> None:
    """OutputError before minutes of work, not after them."""
    from edge_prm.errors import OutputError
    from edge_prm.output import check_file

    taken = {path.resolve(): "it is one of the inputs" for path in inputs}
    for path in filter(None, outputs.values()):
        check_file(path)
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"{path} cannot be written: it is read-only; give another name")
        if path.resolve() in taken:
            raise OutputError(f"{path} cannot be written: {taken[path.resolve()]}; give another name")
        taken[path.resolve()] = "two outputs have this name"


def _print(results: Results) -> None:
    """Tables and sentences, then one JSON document as the last line."""
    from edge_prm_bench.report import tables
    from edge_prm_bench.report.html import sentence

    click.echo(tables.hardware(results))
    for table in tables.tables(results):
        click.echo(f"\n{click.style(table.title, bold=True)}\n")
        click.echo(tables.as_text(table))
        if table.note:
            click.echo(click.style(table.note, dim=True))
    click.echo("")
    for note in results.notes:
        click.echo(note)
    for bundle in results.bundles:
        click.echo(f"{click.style(bundle.name, bold=True)}: {sentence(results, bundle)}")
    click.echo(json.dumps(results.as_dict(), allow_nan=False))  # in ASCII: no encoding changes it


def _write(results: Results, json_file: Path | None, report: Path | None, markdown: Path | None) -> None:
    """Write each output complete or not at all; a file that cannot be written does not cost the others."""
    from edge_prm.errors import EdgePRMError
    from edge_prm.output import write_file
    from edge_prm_bench.report import tables
    from edge_prm_bench.report.html import html

    makers: list[tuple[Path | None, Callable[[], str]]] = [
        (json_file, lambda: json.dumps(results.as_dict(), indent=2, allow_nan=False) + "\n"),
        (markdown, lambda: tables.markdown(results)),
        (report, lambda: html(results)),
    ]
    first: EdgePRMError | None = None
    for path, make in makers:
        if path is None:
            continue
        try:
            write_file(path, make().encode("utf-8", "replace").decode("utf-8"))  # rows may hold half a surrogate pair
        except EdgePRMError as error:
            click.echo(f"not written: {error}", err=True)
            first = first or error
    if first is not None:
        raise first
