"""What gives rewards: a bundle that is run here, or a reference file that was written elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import InputError
from edge_prm.head import HEADS
from edge_prm.manifest import Manifest, read_manifest
from edge_prm_bench.reference.file import Provenance, Reference, read_reference


@dataclass(frozen=True)
class Identity:
    """What two scorers must share so that their rewards can be compared: hashes of checkpoint and tokenizer.json, and
    `reads`, the known facts of how text becomes tokens."""

    checkpoint: str
    tokenizer: str
    reads: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Scorer:
    """A bundle or a reference file. `place`: its path, for messages. `rounding`: 0 where weights and KV cache are fp32,
    1 where only the KV cache is rounded, 2 where weights are."""

    name: str
    place: Path
    identity: Identity
    aggregate: str
    rounding: int

    def same_checkpoint(self, other: Scorer) -> bool:
        """Whether both are of the same checkpoint, by its hash."""
        return self.identity.checkpoint == other.identity.checkpoint


@dataclass(frozen=True, eq=False)
class BundleScorer(Scorer):
    """A bundle in the folder `place`."""

    manifest: Manifest


@dataclass(frozen=True, eq=False)
class ReferenceScorer(Scorer):
    """A reference file, as it was read."""

    reference: Reference


def bundle_scorer(folder: Path, manifest: Manifest, name: str, aggregate: str | None) -> BundleScorer:
    """A bundle; `aggregate` replaces its own aggregate unless it is None."""
    reads = {**manifest.input.flat(), "tokens": manifest.head.tokens}
    return BundleScorer(
        name=name,
        place=folder,
        identity=Identity(manifest.source.sha256, manifest.files[TOKENIZER_NAME].sha256, as_json(reads)),
        aggregate=aggregate or manifest.head.default_aggregate,
        rounding=0 if manifest.recipe.exact else 1 if manifest.recipe.full_precision else 2,
        manifest=manifest,
    )


def reference_scorer(path: Path, aggregate: str | None) -> BundleScorer | ReferenceScorer:
    """A reference file, or a folder with a bundle in full precision.

    BundleError or InputError when it is neither, or when the weights of the bundle are rounded.
    """
    if not path.is_dir():
        return _of_file(path, read_reference(path), aggregate)
    manifest = read_manifest(path)
    if not manifest.recipe.full_precision:
        raise InputError(
            f"{path} is a bundle of recipe {manifest.recipe.name}; a reference has full precision: export it with "
            "--fp32, or make a reference file with `edge-prm bench reference`"
        )
    cache = "" if manifest.recipe.exact else f", KV cache in {manifest.recipe.kv_dtype}"
    return bundle_scorer(path, manifest, f"{manifest.source.name} fp32, {manifest.recipe.engine}{cache}", aggregate)


def _of_file(path: Path, reference: Reference, aggregate: str | None) -> ReferenceScorer:
    checkpoint, run = reference.provenance.checkpoint, reference.provenance.run
    batch = f", batch {run.batch_size}" if run.batch_size > 1 else ""
    return ReferenceScorer(
        name=f"{checkpoint.name} {run.dtype}, torch{batch}",
        place=path,
        identity=Identity(checkpoint.sha256, checkpoint.tokenizer_sha256, _reads(reference.provenance)),
        aggregate=aggregate or HEADS[checkpoint.head].aggregate,
        rounding=0 if run.dtype == "fp32" else 2,
        reference=reference,
    )


def _reads(provenance: Provenance) -> dict[str, Any]:
    if not provenance.checkpoint.input:
        return {}
    return as_json({**provenance.checkpoint.input, "tokens": provenance.checkpoint.tokens})


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a JSON file has them: a tuple is a list there, and the two must compare equal."""
    values: dict[str, Any] = json.loads(json.dumps(fields))
    return values


def check_hashes(scorers: Sequence[Scorer]) -> None:
    """InputError for a bundle of format 1, whose hash of the checkpoint is over samples of the weights only."""
    for scorer in scorers:
        if isinstance(scorer, BundleScorer) and scorer.manifest.format_version < 2:
            raise InputError(
                f"{scorer.place} was written by edge-prm {scorer.manifest.edge_prm_version}, whose hash of a "
                "checkpoint is over samples of its weights: whether a reference is of the same checkpoint is not "
                "known; export it again"
            )


def check_same_text(bundles: Sequence[Scorer], references: Sequence[Scorer]) -> None:
    """InputError when a bundle and a reference of the same checkpoint read other tokens: their difference would mean
    nothing."""
    for reference in references:
        for bundle in bundles:
            if bundle.same_checkpoint(reference):
                _check_pair(bundle, reference)


def _check_pair(bundle: Scorer, reference: Scorer) -> None:
    ours, theirs = bundle.identity, reference.identity
    if ours.tokenizer != theirs.tokenizer:
        raise InputError(
            f"{reference.place} was made with another tokenizer.json than {bundle.place} holds; make it again from the "
            "checkpoint as it is"
        )
    for name in ours.reads.keys() & theirs.reads.keys():
        if ours.reads[name] != theirs.reads[name]:
            raise InputError(
                f"{reference.place} was made with {name} {theirs.reads[name]!r} and {bundle.place} has "
                f"{ours.reads[name]!r}; make both with the same options"
            )
