"""The `edge-prm` command: options here, work elsewhere. The one place where errors become messages.

Bodies import what they need when they run, so that `edge-prm --help` is instant and the base install suffices for it.
"""

from __future__ import annotations

if __name__ == "__main__":  # as early as possible: an interrupt may come during the imports
    from edge_prm.interrupts import watch

    watch()

import json
import sys
from pathlib import Path
from typing import Any

import click

from edge_prm import __version__, interrupts
from edge_prm.cli import options as option
from edge_prm.cli.bench import bench
from edge_prm.cli.score import rank, score, show_rows
from edge_prm.cli.terminal import colour, serve_any_encoding
from edge_prm.exit_codes import EXIT_BAD_INPUT, EXIT_SOME_FAILED
from edge_prm.notices import on_stderr
from edge_prm.progress import show_progress
from edge_prm.source import DEFAULT_SOURCE


class _Group(click.Group):
    """Turns errors raised on purpose, and interrupts, into one line on stderr and an exit code (edge_prm.exit_codes).

    Anything else is a bug and shows.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        serve_any_encoding()
        options.setdefault("color", colour())
        return super().main(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:
        from edge_prm.errors import EdgePRMError

        try:
            interrupts.begin()
            with on_stderr():
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
@option.conventions
@click.option(
    "--exporter", type=click.Choice(("auto", "native", "optimum")), default="auto", show_default=True,
    help="optimum (needs torch) exports decoders that are not Qwen2.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@option.as_json
def export(
    source: str, recipe: str, gguf: bool, gguf_type: str | None, rotate: bool | None, reduce_range: bool,
    output: Path | None, revision: str | None, convention: str | None, separator: str | None,
    good_token: str | None, bad_token: str | None, between: str | None, after_step: str | None,
    exporter: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize a checkpoint into a bundle, without torch (but for --exporter optimum).

    SOURCE is a folder, a hub id, or one of the embedded `demo` and `demo-reference` (./demo for a folder of that name).
    Exit code 1: the bundle was written, and it is further from full precision than its recipe allows.
    """
    import edge_prm_export
    from edge_prm.manifest import read_manifest

    token_pair = option.token_pair(good_token, bad_token)
    folder = edge_prm_export.export(
        source, output, recipe=recipe, gguf=gguf or gguf_type is not None, gguf_type=gguf_type, rotate=rotate,
        revision=revision, reduce_range=reduce_range, separator=separator, between=between, after_step=after_step,
        token_pair=token_pair, format=convention,
        exporter=exporter, force=force, progress=show_progress,
    )  # fmt: skip
    manifest = read_manifest(folder)
    size = sum(entry.bytes for entry in manifest.files.values())
    fidelity = manifest.fidelity
    assert fidelity is not None, "every export ends with golden trajectories"
    if as_json:
        facts = {
            "bundle": str(folder), "bytes": size, "recipe": manifest.recipe.name, "rotated": manifest.recipe.rotated,
            "backend": manifest.backend, "head": manifest.head.kind, "separator": manifest.input.separator,
            "dated": manifest.input.dated or None,
        }  # fmt: skip
        facts |= {
            "mean_difference": fidelity.mean_difference, "max_difference": fidelity.max_difference,
            "tolerance": fidelity.tolerance, "within_tolerance": fidelity.within_tolerance,
        }  # fmt: skip
        click.echo(json.dumps(facts))
    else:
        head = f"{manifest.head.kind} head, separator {manifest.input.separator!r}"
        what = f"{manifest.recipe.name}, {head}, {size / 1e9:.2f} GB"
        click.echo(
            f"{folder}: {what}; {fidelity.reward_count} golden rewards within "
            f"{fidelity.max_difference:.4f} of full precision (mean {fidelity.mean_difference:.4f})"
        )
    if dated := manifest.input.dated:
        click.echo(f"Note: the chat template writes the date; the bundle keeps that of its export, {dated}", err=True)
    if not fidelity.within_tolerance:
        sys.exit(EXIT_SOME_FAILED)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@option.as_json
def info(bundle: Path, as_json: bool) -> None:
    """Print what a bundle is: source, head, recipe, files, fidelity."""
    from edge_prm.check import too_coarse
    from edge_prm.manifest import read_manifest
    from edge_prm.printable import printable

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
        facts["golden"] = (
            f"{fidelity.reward_count} rewards within {fidelity.max_difference:.4f} of {fidelity.reference} "
            f"(limit {fidelity.tolerance:g})"
        )
        if not fidelity.within_tolerance:
            facts["not trusted"] = too_coarse(manifest)
    for name, entry in manifest.files.items():
        facts[name] = f"{entry.bytes / 1e6:.1f} MB, sha256 {entry.sha256[:16]}…"
    for name, value in facts.items():
        click.echo(f"{click.style(f'{name:>16}', bold=True)}  {printable(value)}")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@option.threads
@option.device
@option.gpu_layers
@option.as_json
def check(bundle: Path, threads: int | None, device: str, gpu_layers: int | None, as_json: bool) -> None:
    """Verify a bundle's hashes, and its golden rewards on this device.

    Exit code 1 when they cannot be trusted: the sentence, and `verdict` in JSON, say whether this device's kernels are
    the cause (`device`), or the recipe is too coarse for the checkpoint on any device (`recipe`).
    """
    from edge_prm.backends import EngineOptions
    from edge_prm.bundle import open_bundle
    from edge_prm.check import check_bundle
    from edge_prm.manifest import read_manifest

    size = sum(entry.bytes for entry in read_manifest(bundle).files.values())
    with show_progress("verifying hashes", size) as advance:
        opened = open_bundle(bundle, verify_all=True, progress=advance)
    result = check_bundle(opened, EngineOptions(threads, device, gpu_layers))
    click.echo(json.dumps(result.as_dict()) if as_json else result.sentence)
    if not result.trusted:
        sys.exit(EXIT_SOME_FAILED)


@main.command()
@option.threads
@option.as_json
def demo(threads: int | None, as_json: bool) -> None:
    """Export the embedded demo checkpoint, score and rank derivations with it, and compare with full precision."""
    from edge_prm.cli.demo import run_demo

    facts = run_demo(threads, show_progress, (lambda line: None) if as_json else click.echo)
    if as_json:
        click.echo(json.dumps(facts))


for command in (score, rank, show_rows, bench):
    main.add_command(command)


if __name__ == "__main__":
    interrupts.run(main)
