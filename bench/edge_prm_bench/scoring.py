"""Who gives rewards for a file's traces: a bundle on this device, or a reference file; and which is whose reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edge_prm
from edge_prm.aggregate import default_aggregate
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import ContextLengthError, InputError
from edge_prm.manifest import MANIFEST_NAME, Manifest, read_manifest
from edge_prm_bench.data import Data, read_data
from edge_prm_bench.fidelity import Rewards, Scored
from edge_prm_bench.reference_file import Reference, read_reference

FULL_PRECISION = ("fp32",)


@dataclass(frozen=True)
class Judge:
    """Whose rewards they are: `checkpoint` tells two judges of one model, run in two ways, from two models."""

    name: str
    checkpoint: str
    tokenizer: str
    precision: str
    aggregate: str
    source: Path

    def scored(self, rewards: Rewards) -> Scored:
        return Scored(self.name, rewards, self.aggregate)


def bundle_judge(folder: Path, manifest: Manifest, name: str, aggregate: str | None) -> Judge:
    return Judge(
        name,
        manifest.source.sha256,
        manifest.files[TOKENIZER_NAME].sha256,
        manifest.recipe.name,
        aggregate or manifest.head.default_aggregate,
        folder,
    )


def reference_judge(path: Path, aggregate: str | None) -> Judge:
    """A reference file, or a bundle folder of full precision."""
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        manifest = read_manifest(path)
        if manifest.recipe.name not in FULL_PRECISION:
            raise InputError(
                f"{path} is a bundle of recipe {manifest.recipe.name}; a reference has full precision: export it with "
                "--fp32, or make a reference file with `edge-prm bench reference`"
            )
        return bundle_judge(path, manifest, f"{manifest.source.name} fp32", aggregate)
    provenance = read_reference(path).provenance
    batch = f", batch {provenance.batch_size}" if provenance.batch_size > 1 else ""
    return Judge(
        f"{provenance.checkpoint} {provenance.dtype}, torch{batch}",
        provenance.checkpoint_sha256,
        provenance.tokenizer_sha256,
        provenance.dtype,
        aggregate or default_aggregate(provenance.head),
        path,
    )


def read_files(
    paths: Sequence[Path], references: Sequence[Judge], limit: int | None, default_limit: int | None, split: str
) -> list[Data]:
    """Read the data files, as much of each as `limit` says, or else as a reference holds, or else `default_limit`.

    InputError when a reference file was made from none of them.
    """
    found = {judge: read_reference(judge.source) for judge in references if judge.source.is_file()}
    used: set[Judge] = set()
    files = []
    for path in paths:
        data = read_data(path, split=split)
        fitting = {judge: part for judge, reference in found.items() if (part := _part(path, data, reference))}
        used |= fitting.keys()
        if fitting and limit is None:
            files.append(max(fitting.values(), key=lambda part: len(part.traces)))
        else:
            files.append(data.first(limit if limit is not None else default_limit))
    for judge, reference in found.items():
        if judge not in used:
            raise InputError(
                f"{reference.place} was made from other data ({reference.provenance.data}, "
                f"{reference.provenance.traces} traces) than {', '.join(map(str, paths)) or 'none'}; give its file"
            )
    return files


def _part(path: Path, data: Data, reference: Reference) -> Data | None:
    """The part of a file that a reference was made from."""
    provenance = reference.provenance
    whole = data if data.split == provenance.split else read_data(path, split=provenance.split)
    part = whole.first(provenance.traces)
    return part if part.sha256 == provenance.data_sha256 else None


def rewards_of_file(judge: Judge, data: Data) -> Rewards:
    """Rewards of a reference file for `data`, or for as many of its first traces as it holds; the rest is None."""
    reference = read_reference(judge.source)
    count = min(reference.provenance.traces, len(data.traces))
    if count < reference.provenance.traces:
        known = {row.id: row.rewards for row in reference.rows}
        return [known.get(trace.id) for trace in data.traces]
    rewards = reference.rewards_for(data.first(count))
    return [*rewards, *[None] * (len(data.traces) - count)]


def rewards_of_bundle(prm: edge_prm.PRM, data: Data, progress: Any) -> Rewards:
    """Score a file's traces; a text over the bundle's context is None, as it is in a reference."""
    rewards: list[Sequence[float] | None] = []
    remaining = iter(data.traces)
    with progress(f"scoring {data.name}", len(data.traces)) as advance:
        while len(rewards) < len(data.traces):
            try:
                for score in prm.score_many(trace.trajectory for trace in remaining):
                    rewards.append(score.rewards)
                    advance(1)
            except ContextLengthError:  # the trace that was asked for; go on behind it
                rewards.append(None)
                advance(1)
    return rewards
