"""What gives rewards: a bundle that is run here, or a reference file that was made elsewhere."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edge_prm
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import ContextLengthError, EdgePRMError, InputError
from edge_prm.head import HEADS
from edge_prm.manifest import Manifest, read_manifest
from edge_prm_bench.data import Data
from edge_prm_bench.reference.file import Reference, read_reference
from edge_prm_bench.statistics.coverage import Missing, Rewards, Scored

WEIGHT_BITS = {"fp32": 32, "f32": 32, "fp16": 16, "f16": 16, "bf16": 16}
"""Bits of a weight by recipe; every other recipe has fewer."""
FULL_BITS = 32


@dataclass(frozen=True, eq=False)
class Judge:
    """A bundle (`manifest`) or a reference file (`reference`), and what is compared before its rewards are.

    `checkpoint` and `tokenizer` are hashes; `reads` is how text becomes tokens, as far as it is known. `rounding` is 0
    where weights and KV cache are fp32, 1 where only the KV cache is rounded, 2 where weights are.
    """

    name: str
    source: Path
    checkpoint: str
    tokenizer: str
    aggregate: str
    rounding: int
    reads: Mapping[str, Any]
    manifest: Manifest | None = None
    reference: Reference | None = None

    def scored(self, rewards: Rewards, missing: Mapping[int, Missing]) -> Scored:
        """Rewards under the name of this judge."""
        return Scored(self.name, rewards, self.aggregate, missing)


def bundle_judge(folder: Path, manifest: Manifest, name: str, aggregate: str | None) -> Judge:
    """A bundle; its aggregate is its own unless one is given."""
    return Judge(
        name=name,
        source=folder,
        checkpoint=manifest.source.sha256,
        tokenizer=manifest.files[TOKENIZER_NAME].sha256,
        aggregate=aggregate or manifest.head.default_aggregate,
        rounding=_rounding(manifest),
        reads=_as_json({**asdict(manifest.input), "tokens": manifest.head.tokens}),
        manifest=manifest,
    )


def reference_judge(path: Path, aggregate: str | None) -> Judge:
    """A reference file, or a bundle folder of full precision.

    BundleError or InputError when it is neither, or when the bundle's weights have fewer than 32 bits.
    """
    if path.is_dir():
        manifest = read_manifest(path)
        if WEIGHT_BITS.get(manifest.recipe.name, 0) < FULL_BITS:
            raise InputError(
                f"{path} is a bundle of recipe {manifest.recipe.name}; a reference has full precision: export it with "
                "--fp32, or make a reference file with `edge-prm bench reference`"
            )
        engine = {"onnx": "", "gguf": ", GGUF with KV cache in fp16"}.get(manifest.backend, f", {manifest.backend}")
        return bundle_judge(path, manifest, f"{manifest.source.name} fp32{engine}", aggregate)
    reference = read_reference(path)
    made = reference.provenance
    batch = f", batch {made.batch_size}" if made.batch_size > 1 else ""
    reads = dict(getattr(made, "input", {}))
    return Judge(
        name=f"{made.checkpoint} {made.dtype}, torch{batch}",
        source=path,
        checkpoint=made.checkpoint_sha256,
        tokenizer=made.tokenizer_sha256,
        aggregate=aggregate or HEADS[made.head].aggregate,
        rounding=0 if made.dtype == "fp32" else 2,
        reads=_as_json(reads | {"tokens": getattr(made, "tokens", ())}) if reads else {},
        reference=reference,
    )


def _as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a file would hold them: a reference file keeps a tuple as a list."""
    values: dict[str, Any] = json.loads(json.dumps(fields))
    return values


def _rounding(manifest: Manifest) -> int:
    if WEIGHT_BITS.get(manifest.recipe.name, 0) < FULL_BITS:
        return 2
    return 1 if manifest.backend == "gguf" else 0  # llama.cpp keeps keys and values in fp16, even of F32 weights


def check_hashes(judges: Sequence[Judge]) -> None:
    """InputError for a bundle whose manifest does not say of which checkpoint it is: format 1 hashed samples only."""
    for judge in judges:
        if judge.manifest is not None and judge.manifest.format_version < 2:
            raise InputError(
                f"{judge.source} was written by edge-prm {judge.manifest.edge_prm_version}, whose hash of a checkpoint "
                "is over samples of its weights: whether a reference is of the same checkpoint is not known; export it "
                "again"
            )


def check_same_text(ours: Sequence[Judge], references: Sequence[Judge]) -> None:
    """InputError when a bundle and a reference of one checkpoint read other tokens: their difference means nothing."""
    for reference in references:
        for judge in (judge for judge in ours if judge.checkpoint == reference.checkpoint):
            if judge.tokenizer != reference.tokenizer:
                raise InputError(
                    f"{reference.source} was made with another tokenizer.json than {judge.source} holds; make it again "
                    "from the checkpoint as it is"
                )
            for name in judge.reads.keys() & reference.reads.keys():
                if judge.reads[name] != reference.reads[name]:
                    raise InputError(
                        f"{reference.source} was made with {name} {reference.reads[name]!r} and {judge.source} has "
                        f"{judge.reads[name]!r}; make both with the same options"
                    )


def rewards_of_reference(judge: Judge, known: Rewards, data: Data) -> Scored:
    """Rewards of a reference file for `data`, whose traces begin as those that the rewards `known` are of."""
    assert judge.reference is not None, "only reference files are matched with data"
    skipped = {row.id: row.skipped for row in judge.reference.rows}
    rewards: list[Sequence[float] | None] = []
    missing: dict[int, Missing] = {}
    for index, trace in enumerate(data.traces):
        found = known[index] if index < len(known) else None
        if index >= len(known):
            missing[index] = Missing(f"traces beyond the first {len(known)}, which the reference holds")
        elif found is None:
            missing[index] = Missing("traces that were skipped in the reference", skipped.get(trace.id, ""))
        elif not all(map(math.isfinite, found)):
            missing[index], found = Missing("traces with a reward in the reference that is no number"), None
        rewards.append(found)
    return judge.scored(rewards, missing)


def rewards_of_bundle(judge: Judge, prm: edge_prm.PRM, data: Data, progress: Any) -> Scored:
    """Score a file's traces in order; one that cannot be scored has no rewards and a reason, and costs only itself."""
    rewards: list[Sequence[float] | None] = []
    missing: dict[int, Missing] = {}
    with progress(f"scoring {data.name}", len(data.traces)) as advance:
        while len(rewards) < len(data.traces):
            try:
                for score in prm.score_many(trace.trajectory for trace in data.traces[len(rewards) :]):
                    rewards.append(score.rewards)
                    advance(1)
            except EdgePRMError as error:  # of the next trace; go on after it
                missing[len(rewards)] = _reason(error)
                rewards.append(None)
                advance(1)
    return judge.scored(rewards, missing)


def nothing_scored(scored: Scored) -> str:
    """The most frequent reason why a column has no rewards at all."""
    counted = Counter(
        reason.kind + (f" ({reason.detail})" if reason.detail else "") for reason in scored.missing.values()
    )
    return counted.most_common(1)[0][0] if counted else "no reason is known"


def _reason(error: EdgePRMError) -> Missing:
    if isinstance(error, ContextLengthError):
        return Missing(f"traces over the context of {error.context_length:,} tokens", f"{error.tokens:,} tokens")
    return Missing("traces that could not be scored", str(error))
