"""The `edge-prm` command: options here, work elsewhere. The one place where errors become messages.

Bodies import what they need when they run, so that `edge-prm --help` is instant and the base install suffices for it.
"""

from __future__ import annotations

if __name__ == "__main__":  # as early as possible: an interrupt may come during the imports
    from edge_prm.interrupts import watch

    watch()

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from edge_prm import __version__, interrupts
from edge_prm.aggregate import AGGREGATES
from edge_prm.cli_bench import bench
from edge_prm.exit_codes import EXIT_BAD_INPUT, EXIT_SOME_FAILED
from edge_prm.progress import show_progress
from edge_prm.source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from edge_prm.prm import PRM
    from edge_prm.rows import CandidatesRow, Row


class _Group(click.Group):
    """Turns errors raised on purpose, and interrupts, into one line on stderr and an exit code (edge_prm.exit_codes).

    Anything else is a bug and shows.
    """

    def invoke(self, context: click.Context) -> Any:
        from edge_prm.errors import EdgePRMError

        try:
            interrupts.begin()
            return super().invoke(context)
        except BaseException as error:
            if interrupts.interrupted() or isinstance(error, KeyboardInterrupt):  # libraries may make others of it
                interrupts.leave()
            if not isinstance(error, EdgePRMError):
                raise
            click.echo(f"Error: {error}", err=True)
            context.exit(EXIT_BAD_INPUT)
        finally:
            interrupts.end()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-prm")
def main() -> None:
    """Score reasoning, step by step, where it happens.

    Try `edge-prm demo` first: it needs no checkpoint of your own.
    """


_threads = click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine (default: one per core).")
_device = click.option(
    "--device", type=click.Choice(("auto", "cpu", "gpu")), default="auto", show_default=True, help="gpu: GGUF bundles."
)
_gpu_layers = click.option("--gpu-layers", type=click.IntRange(min=0), help="Layers that the GPU holds (default: all).")
_as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of the terminal view.")
_aggregate = click.option(
    "--aggregate", type=click.Choice(tuple(AGGREGATES)), help="From step rewards to a score (default: the bundle's)."
)
_split = click.option(
    "--split",
    default="blank",
    show_default=True,
    metavar="lines|blank|REGEX",
    help="What separates the steps of a completion.",
)
_strict = click.option("--strict", is_flag=True, help="Stop at the first bad row.")
_weak = click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="A step below this is weak."
)
_rows_file = click.argument("rows", metavar="ROWS.jsonl|-", type=click.File("rb"))


@main.command()
@click.argument("source", default=DEFAULT_SOURCE)
@click.option("--int8", "recipe", flag_value="int8", default=True, help="8-bit weights and activations (default).")
@click.option("--int4", "recipe", flag_value="int4", help="4-bit weights; with --gguf (Q4_K_M).")
@click.option("--fp16", "recipe", flag_value="fp16", help="16-bit weights; with --gguf.")
@click.option("--fp32", "recipe", flag_value="fp32", help="Full precision: for parity, not for speed.")
@click.option("--gguf", is_flag=True, help="Write a bundle for llama.cpp: CPU, and GPUs by CUDA, Metal or Vulkan.")
@click.option(
    "--gguf-type", metavar="NAME", help="One of llama.cpp's types (Q8_0, Q6_K, Q4_K_M, ...) in place of a recipe."
)
@click.option("--rotate/--no-rotate", default=None, help="Rotate the residual stream of a GGUF (default: if it helps).")
@click.option("--reduce-range", is_flag=True, help="7-bit weights, for processors whose 8-bit kernels saturate.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Output folder (default: SOURCE-RECIPE here).")
@click.option("--revision", help="Revision of a hub id.")
@click.option("--separator", help="What closes a step, where that is not the checkpoint's usual: a token, text or tag.")
@click.option(
    "--good-token", help="No head: judge by the probability of this token (as it stands in the vocabulary) ..."
)
@click.option("--bad-token", help="... against this one.")
@click.option("--between", help="With --good-token: text between prompt and steps (default: a blank).")
@click.option("--after-step", help="With --good-token and --separator: text behind each tag (default: a newline).")
@click.option(
    "--exporter", type=click.Choice(("auto", "native", "optimum")), default="auto", show_default=True,
    help="optimum (needs torch) exports decoders that are not Qwen2.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@_as_json
def export(
    source: str, recipe: str, gguf: bool, gguf_type: str | None, rotate: bool | None, reduce_range: bool,
    output: Path | None, revision: str | None, separator: str | None, good_token: str | None, bad_token: str | None,
    between: str | None, after_step: str | None, exporter: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize a checkpoint into a bundle, without torch (but for --exporter optimum).

    SOURCE is a folder, a hub id, or one of the embedded `demo` and `demo-reference`.
    """
    import edge_prm_export
    from edge_prm.errors import InputError
    from edge_prm.manifest import read_manifest

    if (good_token is None) != (bad_token is None):
        raise InputError("--good-token and --bad-token go together: the probability of one against the other")
    folder = edge_prm_export.export(
        source, output, recipe=recipe, gguf=gguf or gguf_type is not None, gguf_type=gguf_type, rotate=rotate,
        revision=revision, reduce_range=reduce_range, separator=separator, between=between, after_step=after_step,
        token_pair=(good_token, bad_token) if good_token is not None and bad_token is not None else None,
        exporter=exporter, force=force, progress=show_progress,
    )  # fmt: skip
    manifest = read_manifest(folder)
    size = sum(entry.bytes for entry in manifest.files.values())
    fidelity = manifest.fidelity
    assert fidelity is not None, "every export ends with golden trajectories"
    if as_json:
        facts = {
            "bundle": str(folder), "bytes": size, "recipe": manifest.recipe.name, "rotated": manifest.recipe.rotated,
            "backend": manifest.backend, "head": manifest.head.kind,
        }  # fmt: skip
        click.echo(
            json.dumps(facts | {"mean_difference": fidelity.mean_difference, "max_difference": fidelity.max_difference})
        )
        return
    what = f"{manifest.recipe.name}, {manifest.head.kind} head, {size / 1e9:.2f} GB"
    click.echo(
        f"{folder}: {what}; {fidelity.rewards} golden rewards within "
        f"{fidelity.max_difference:.4f} of full precision (mean {fidelity.mean_difference:.4f})"
    )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_rows_file
@_aggregate
@_split
@_weak
@_threads
@_device
@_gpu_layers
@_strict
@_as_json
def score(
    bundle: Path, rows: BinaryIO, aggregate: str | None, split: str, threshold: float, threads: int | None,
    device: str, gpu_layers: int | None, strict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score every step of every row.

    A row has `problem` (or `prompt`) and `steps` (a list) or `completion` (or `response`, `output`, `solution`).
    """
    from edge_prm.rows import Row
    from edge_prm.trajectory import Trajectory
    from edge_prm.view import score_lines

    def one(prm: PRM, row: Row) -> Iterator[str]:
        result = prm.score(row.prompt, row.steps, aggregate=aggregate, split=split)
        if as_json:
            yield json.dumps({"id": row.id, "rewards": result.rewards, "score": result.score, "tokens": result.tokens})
            return
        texts = [step.text for step in Trajectory.of(row.prompt, row.steps, split=split).steps]
        yield from score_lines(row.id, texts, result, aggregate or prm.manifest.head.default_aggregate, threshold)

    _each_row(bundle, rows, Row, one, split, strict, threads=threads, device=device, gpu_layers=gpu_layers)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_rows_file
@_aggregate
@_split
@_weak
@click.option("--early-stop", is_flag=True, help="Give candidates up that cannot win any more (min, prod).")
@click.option("--give-up-below", type=click.FloatRange(0, 1), help="Give a candidate up at its first step below this.")
@_threads
@_device
@_gpu_layers
@_strict
@_as_json
def rank(
    bundle: Path, rows: BinaryIO, aggregate: str | None, split: str, threshold: float, early_stop: bool,
    give_up_below: float | None, threads: int | None, device: str, gpu_layers: int | None, strict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Rank the candidates of every row; the prompt is computed once.

    A row has `problem` (or `prompt`) and `candidates`: strings, or objects with `text`.
    """
    from edge_prm.aggregate import check_early_stop
    from edge_prm.manifest import read_manifest
    from edge_prm.rows import CandidatesRow
    from edge_prm.view import ranking_lines

    if early_stop:
        check_early_stop(aggregate or read_manifest(bundle).head.default_aggregate)

    def one(prm: PRM, row: CandidatesRow) -> Iterator[str]:
        result = prm.rank(
            row.prompt, row.candidates, aggregate=aggregate, split=split, early_stop=early_stop, threshold=give_up_below
        )
        if as_json:
            facts: dict[str, Any] = {
                "id": row.id,
                "best": result.best,
                "scores": result.scores,
                "rewards": result.rewards,
            }
            yield json.dumps(facts | ({"stopped": result.stopped} if result.stopped else {}))
            return
        texts = [c if isinstance(c, str) else " ".join(c) for c in row.candidates]
        yield from ranking_lines(row.id, texts, result, aggregate or prm.manifest.head.default_aggregate, threshold)

    _each_row(bundle, rows, CandidatesRow, one, split, strict, threads=threads, device=device, gpu_layers=gpu_layers)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_as_json
def info(bundle: Path, as_json: bool) -> None:
    """Print what a bundle is: source, head, recipe, files, fidelity."""
    from edge_prm.manifest import read_manifest
    from edge_prm.view import printable

    manifest = read_manifest(bundle)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    architecture, source = manifest.architecture, manifest.source
    tokens = f" ({' against '.join(map(repr, manifest.head.tokens))})" if manifest.head.tokens else ""
    more = ", reduced range" * manifest.recipe.reduce_range + ", rotated" * manifest.recipe.rotated
    facts = {
        "source": source.name + (f" at {source.revision}" if source.revision else ""),
        "model": f"{architecture.model_type}, {architecture.layers} layers, hidden {architecture.hidden}",
        "head": f"{manifest.head.kind}{tokens}, score by {manifest.head.default_aggregate}",
        "steps": f"{manifest.input.format}, separator {manifest.input.separator!r}",
        "context": f"{manifest.context_length} tokens",
        "recipe": f"{manifest.recipe.name}{more} for backend {manifest.backend}",
        "written by": f"edge-prm {manifest.edge_prm_version}, format {manifest.format_version}",
    }
    if fidelity := manifest.fidelity:
        facts["golden"] = f"{fidelity.rewards} rewards within {fidelity.max_difference:.4f} of {fidelity.reference}"
    for name, entry in manifest.files.items():
        facts[name] = f"{entry.bytes / 1e6:.1f} MB, sha256 {entry.sha256[:16]}…"
    for name, value in facts.items():
        click.echo(f"{click.style(f'{name:>16}', bold=True)}  {printable(value)}")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_threads
@_device
@_gpu_layers
@_as_json
def check(bundle: Path, threads: int | None, device: str, gpu_layers: int | None, as_json: bool) -> None:
    """Verify a bundle's hashes, and its golden scores on this device; exit code 1 when they cannot be trusted."""
    from dataclasses import asdict

    from edge_prm.bundle import open_bundle
    from edge_prm.check import check_bundle
    from edge_prm.manifest import read_manifest

    size = sum(entry.bytes for entry in read_manifest(bundle).files.values())
    with show_progress("verifying hashes", size) as advance:
        opened = open_bundle(bundle, verify_all=True, progress=advance)
    result = check_bundle(opened, threads=threads, device=device, gpu_layers=gpu_layers)
    click.echo(json.dumps(asdict(result)) if as_json else result.sentence)
    if not result.trusted:
        sys.exit(EXIT_SOME_FAILED)


@main.command()
@_threads
@_as_json
def demo(threads: int | None, as_json: bool) -> None:
    """Export the embedded demo checkpoint, score and rank derivations with it, and compare with full precision."""
    from edge_prm.demo.show import run_demo

    facts = run_demo(threads, show_progress, (lambda line: None) if as_json else click.echo)
    if as_json:
        click.echo(json.dumps(facts))


main.add_command(bench)


def _each_row(
    bundle: Path,
    file: BinaryIO,
    kind: Any,
    one: Callable[[PRM, Any], Iterator[str]],
    split: str,
    strict: bool,
    **engine: Any,
) -> None:
    """Run `one` on each row of a file; bad rows are reported with their line number and counted."""
    from edge_prm.errors import InputError
    from edge_prm.prm import load
    from edge_prm.rows import BadRow, read_rows
    from edge_prm.trajectory import splitter
    from edge_prm.view import printable

    splitter(split)
    done = bad = 0
    with load(bundle, **engine) as prm:
        for row in _counted(read_rows(file, kind)):
            try:
                if isinstance(row, BadRow):
                    raise InputError(row.reason)
                for line in one(prm, row):
                    click.echo(line)
                done += 1
            except InputError as error:
                bad += 1
                reason = printable(str(error))  # it may quote the row
                click.echo(f"Error: {getattr(file, 'name', 'input')}, line {row.line}: {reason}", err=True)
                if strict:
                    sys.exit(EXIT_BAD_INPUT)
    if not done and not bad:
        raise InputError(f"{getattr(file, 'name', 'input')} holds no rows")
    if bad:
        click.echo(f"{done} rows done, {bad} bad rows left out", err=True)
        sys.exit(EXIT_SOME_FAILED)


def _counted(rows: Iterator[Any]) -> Iterator[Any]:
    """Count rows on stderr as they go by; a file's length is not known before its end."""
    if not sys.stderr.isatty() or sys.stdout.isatty():  # on one terminal, the rows themselves are the progress
        yield from rows
        return
    with click.progressbar(rows, label="rows", file=sys.stderr, show_pos=True, length=None) as counted:
        yield from counted


if __name__ == "__main__":
    interrupts.run(main)
