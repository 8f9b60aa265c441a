"""Golden trajectories: our own texts, scored in full precision and with the bundle, to test any device."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_prm.backends import EngineOptions, load_model
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import CheckpointError, ContextLengthError
from edge_prm.manifest import Fidelity, Golden, Manifest, Validation
from edge_prm.trajectory import Trajectory
from edge_prm_export.job import EncodedTexts, ExportResult
from edge_prm_export.progress import Progress

Texts = tuple[tuple[str, tuple[str, ...]], ...]


def encode_texts(encoder: Encoder, texts: Texts) -> EncodedTexts:
    """Encode our own texts; a model of a very short context gets fewer of their steps, and leaves out what is left."""
    fitting = []
    for prompt, steps in texts:
        for count in range(len(steps), 0, -1):
            with contextlib.suppress(ContextLengthError):
                fitting.append((prompt, steps[:count], encoder.encode(Trajectory.of(prompt, steps[:count]))))
                break
    return fitting


def encode_golden(encoder: Encoder, texts: Texts, manifest: Manifest) -> EncodedTexts:
    """CheckpointError when no golden trajectory fits into the context."""
    golden = encode_texts(encoder, texts)
    if not golden:
        raise CheckpointError(
            f"checkpoint {manifest.source.name} has a context of {manifest.context_length} tokens; "
            "no golden trajectory fits"
        )
    return golden


def with_golden(
    folder: Path, manifest: Manifest, golden: EncodedTexts, written: ExportResult, progress: Progress
) -> Manifest:
    """Score the golden trajectories with the bundle in `folder`, and return its manifest with both kinds of rewards.

    Raises CheckpointError for rewards that are not finite, and for a bundle in full precision that is outside its
    tolerance: it rounds nothing, so its graph computes something else than the checkpoint.
    """
    scored = _bundle_rewards(Bundle(folder, manifest), [encoded for *_, encoded in golden], progress)
    differences = np.abs(np.concatenate(written.references) - np.concatenate(scored))
    if not np.isfinite(differences).all():
        raise CheckpointError(f"checkpoint {manifest.source.name} gives rewards that are not finite")
    fidelity = Fidelity(
        reference=written.reference,
        reward_count=len(differences),
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
        tolerance=manifest.recipe.tolerances.full_precision,
        incremental_tolerance=manifest.recipe.tolerances.incremental,
    )
    if manifest.recipe.exact and not fidelity.within_tolerance:
        raise CheckpointError(
            f"checkpoint {manifest.source.name}: its bundle in full precision gives rewards that are up to "
            f"{fidelity.max_difference:.4f} from {fidelity.reference} (limit {fidelity.tolerance:g}), so the exported "
            "graph does not compute what the checkpoint does; nothing was written: please report the checkpoint"
        )
    rows = zip(golden, written.references, scored, strict=True)
    trajectories = tuple(
        Golden(prompt, steps, text.sha256(), tuple(reference), tuple(rewards))
        for (prompt, steps, text), reference, rewards in rows
    )
    return replace(manifest, validation=Validation(trajectories, fidelity))


def _bundle_rewards(bundle: Bundle, texts: list[Encoded], progress: Progress) -> list[list[float]]:
    model = load_model(bundle, EngineOptions(device="cpu"))
    scored = []
    with contextlib.closing(model), progress("scoring golden trajectories", len(texts)) as advance:
        for text in texts:
            sequence = model.start()
            scored.append(sequence.extend(text.ids, text.read_at).astype(float).tolist())
            sequence.close()
            advance(1)
    return scored
