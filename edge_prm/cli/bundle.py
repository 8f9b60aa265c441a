"""`edge-prm info` and `edge-prm check`: what a bundle is, and whether it can be trusted on this device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_prm.cli import options as shared
from edge_prm.cli import verbosity
from edge_prm.cli.command import Command
from edge_prm.exit_codes import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from edge_prm.manifest import Manifest

_bundle = click.argument("bundle", type=click.Path(path_type=Path))


@click.command(cls=Command, examples=("edge-prm info prm-int8", "edge-prm info prm-int8 --json"))
@_bundle
@shared.as_json
def info(bundle: Path, as_json: bool) -> None:
    """Print what a bundle is: source, head, recipe, files, fidelity.

    No model is loaded, and no file is hashed (`edge-prm check` does). With --json, the manifest of the bundle.
    """
    from edge_prm.manifest import read_manifest
    from edge_prm.printable import printable

    manifest = read_manifest(bundle)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    for name, value in _description(manifest).items():
        click.echo(f"{click.style(f'{name:>16}', bold=True)}  {printable(value)}")


@click.command(cls=Command, examples=("edge-prm check prm-int8", "edge-prm check prm-fp16 --device cuda:1 --json"))
@_bundle
@shared.engine
@shared.as_json
def check(
    bundle: Path, threads: int | None, device: str, gpu_layers: int | None, provider: str | None, as_json: bool
) -> None:
    """Verify the hashes of a bundle, and its golden rewards on this device.

    Exit code 1: the rewards cannot be trusted. The sentence, and `verdict` in JSON, say whether the kernels of this
    device are the cause (`device`), or the recipe is too coarse for the checkpoint on any device (`recipe`).
    """
    from edge_prm.backends import EngineOptions
    from edge_prm.bundle import open_bundle
    from edge_prm.check import check_bundle
    from edge_prm.manifest import read_manifest

    size = sum(entry.bytes for entry in read_manifest(bundle).files.values())
    with verbosity.progress("verifying hashes", size) as advance:
        opened = open_bundle(bundle, verify_all=True, progress=advance)
    result = check_bundle(opened, EngineOptions(threads, device, gpu_layers, provider=provider))
    click.echo(json.dumps(result.as_dict()) if as_json else result.sentence)
    if not result.trusted:
        sys.exit(EXIT_SOME_FAILED)


def _description(manifest: Manifest) -> dict[str, str]:
    """The lines of `edge-prm info`: what they are about, and the text."""
    architecture, source, recipe = manifest.architecture, manifest.source, manifest.recipe
    tokens = f" ({' against '.join(map(repr, manifest.head.tokens))})" if manifest.head.tokens else ""
    convention = f", convention {manifest.provenance.convention}" * bool(manifest.provenance.convention)
    more = ", reduced range" * recipe.reduce_range + ", rotated" * recipe.rotated
    lines = {
        "source": source.name + (f" at {source.revision}" if source.revision else ""),
        "model": f"{architecture.model_type}, {architecture.layers} layers, hidden {architecture.hidden}",
        "head": f"{manifest.head.kind}{tokens}, score by {manifest.head.default_aggregate}",
        "steps": f"{manifest.input.format}, separator {manifest.input.separator!r}{convention}",
        "context": f"{manifest.context_length} tokens",
        "recipe": f"{recipe.name}{more} for backend {manifest.backend}",
        "written by": f"edge-prm {manifest.edge_prm_version}, format {manifest.format_version}",
    }
    files = {name: f"{entry.bytes / 1e6:.1f} MB, sha256 {entry.sha256[:16]}…" for name, entry in manifest.files.items()}
    return lines | _fidelity(manifest) | files


def _fidelity(manifest: Manifest) -> dict[str, str]:
    from edge_prm.check import too_coarse

    fidelity = manifest.fidelity
    if fidelity is None:
        return {}
    golden = (
        f"{fidelity.reward_count} rewards within {fidelity.max_difference:.4f} of {fidelity.reference} "
        f"(limit {fidelity.tolerance:g})"
    )
    return {"golden": golden} | ({} if fidelity.within_tolerance else {"not trusted": too_coarse(manifest)})
