"""`edge-prm export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_prm.cli import options as shared
from edge_prm.cli import verbosity
from edge_prm.cli.command import OUTPUT, RECIPE, Command, option, options
from edge_prm.exit_codes import EXIT_SOME_FAILED
from edge_prm.source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from edge_prm.manifest import Fidelity, Manifest

_recipe = options(
    option("--int8", "recipe", section=RECIPE, flag_value="int8", default=True,
           help="8-bit weights and activations (default); with --gguf: Q8_0."),
    option("--int4", "recipe", section=RECIPE, flag_value="int4", help="4-bit weights; with --gguf: Q4_K_M."),
    option("--fp16", "recipe", section=RECIPE, flag_value="fp16",
           help="16-bit weights and activations; with --gguf: F16."),
    option("--fp32", "recipe", section=RECIPE, flag_value="fp32", help="Full precision: for parity, not for speed."),
    option("--device", section=RECIPE, type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True,
           help="Device of an ONNX bundle: cuda has fp16 activations, with --int8, --int4 or --fp16."),
    option("--gguf", section=RECIPE, is_flag=True,
           help="Write a bundle for llama.cpp: CPU, or GPU through CUDA, Metal or Vulkan."),
    option("--gguf-type", section=RECIPE, metavar="NAME",
           help="A type of llama.cpp (Q8_0, Q6_K, Q4_K_M, ...) in place of a recipe."),
    option("--rotate/--no-rotate", section=RECIPE, default=None,
           help="Rotate the residual stream before quantization, with --gguf (default: the closer of both)."),
    option("--reduce-range", section=RECIPE, is_flag=True,
           help="7-bit weights, for processors whose 8-bit kernels saturate."),
    option("--exporter", section=RECIPE, type=click.Choice(("auto", "native", "optimum")), default="auto",
           show_default=True, help="optimum (needs torch) exports decoders that the native exporter does not know."),
)  # fmt: skip
_output = options(
    option("-o", "--output", section=OUTPUT, type=click.Path(path_type=Path),
           help="Output folder (default: SOURCE-RECIPE in the current one)."),
    option("--force", section=OUTPUT, is_flag=True, help="Replace a bundle that already exists."),
)  # fmt: skip


@click.command(
    cls=Command,
    examples=(
        "edge-prm export --int8 --yes",
        "edge-prm export ./ReasonFlux-PRM-1.5B --int8 -o prm-int8",
        "edge-prm export ./ReasonFlux-PRM-1.5B --gguf --int4 -o prm-q4",
        'edge-prm export ./math-shepherd --good-token "▁+" --bad-token "▁-" --separator " ки"',
    ),
)
@click.argument("source", default=DEFAULT_SOURCE)
@shared.revision
@shared.yes
@_recipe
@shared.conventions
@_output
@shared.as_json
def export(
    source: str, output: Path | None, yes: bool, good_token: str | None, bad_token: str | None, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Quantize a checkpoint into a bundle, without torch (except with --exporter optimum).

    SOURCE is a folder, a hub id, or one of the embedded `demo` and `demo-reference` (write ./demo for a folder of that
    name). Without SOURCE, the default checkpoint Gen-Verse/ReasonFlux-PRM-1.5B is downloaded: about 3 GB, to the Hub
    cache (~/.cache/huggingface/hub, or below HF_HOME).

    A download is announced with its size and confirmed: by an answer on a terminal, by --yes without one. Nothing is
    asked where the cache holds the checkpoint.

    Exit code 1: the bundle is written, and it is further from full precision than its recipe allows.
    """
    from edge_prm.cli.download import ask_before_download
    from edge_prm.manifest import read_manifest

    token_pair = shared.token_pair(good_token, bad_token)
    import edge_prm_export

    ask_before_download(source, given["revision"], yes)
    given |= {"gguf": given["gguf"] or given["gguf_type"] is not None, "token_pair": token_pair}
    folder = edge_prm_export.export(source, output, **given, progress=verbosity.progress)
    manifest = read_manifest(folder)
    fidelity = manifest.fidelity
    assert fidelity is not None, "every export ends with golden trajectories"
    click.echo(json.dumps(_facts(folder, manifest, fidelity)) if as_json else _sentence(folder, manifest, fidelity))
    if dated := manifest.input.chat.dated:
        verbosity.note(f"Note: the chat template writes the date; the bundle keeps that of its export, {dated}")
    if not fidelity.within_tolerance:
        sys.exit(EXIT_SOME_FAILED)


def _size(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files.values())


def _facts(folder: Path, manifest: Manifest, fidelity: Fidelity) -> dict[str, Any]:
    return {
        "bundle": str(folder),
        "bytes": _size(manifest),
        "recipe": manifest.recipe.name,
        "rotated": manifest.recipe.rotated,
        "backend": manifest.backend,
        "head": manifest.head.kind,
        "separator": manifest.input.separator,
        "dated": manifest.input.chat.dated or None,
        "mean_difference": fidelity.mean_difference,
        "max_difference": fidelity.max_difference,
        "tolerance": fidelity.tolerance,
        "within_tolerance": fidelity.within_tolerance,
    }


def _sentence(folder: Path, manifest: Manifest, fidelity: Fidelity) -> str:
    head = f"{manifest.head.kind} head, separator {manifest.input.separator!r}"
    return (
        f"{folder}: {manifest.recipe.name}, {head}, {_size(manifest) / 1e9:.2f} GB; "
        f"{fidelity.reward_count} golden rewards within {fidelity.max_difference:.4f} of full precision "
        f"(mean {fidelity.mean_difference:.4f})"
    )
