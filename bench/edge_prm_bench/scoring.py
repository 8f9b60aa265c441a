"""Rewards of a file's traces: from a bundle that is run, or from a reference file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import edge_prm
from edge_prm.errors import ContextLengthError, EdgePRMError
from edge_prm_bench.data import Data
from edge_prm_bench.scorers import ReferenceScorer, Scorer
from edge_prm_bench.statistics.coverage import Missing, Rewards, Scored


def rewards_of_reference(scorer: ReferenceScorer, known: Rewards, data: Data) -> Scored:
    """Rewards of a reference file for `data`; `known` are the rewards of its first traces, in the same order."""
    reasons = {row.id: row.skipped for row in scorer.reference.rows}
    rewards: list[Sequence[float] | None] = []
    missing: dict[int, Missing] = {}
    for index, trace in enumerate(data.traces):
        row = known[index] if index < len(known) else None
        if index >= len(known):
            missing[index] = Missing(f"traces beyond the first {len(known)}, which the reference holds")
        elif row is None:
            missing[index] = Missing("traces that were skipped in the reference", reasons.get(trace.id, ""))
        elif not all(map(math.isfinite, row)):
            missing[index], row = Missing("traces with a reward in the reference that is not finite"), None
        rewards.append(row)
    return Scored(scorer.name, rewards, scorer.aggregate, missing)


def rewards_of_bundle(scorer: Scorer, prm: edge_prm.PRM, data: Data, progress: Any) -> Scored:
    """Score a file's traces in order; a trace that cannot be scored has a reason, and the others are scored."""
    rewards: list[Sequence[float] | None] = []
    missing: dict[int, Missing] = {}
    positions: dict[int, Sequence[int]] = {}
    with progress(f"scoring {data.name}", len(data.traces)) as advance:
        while len(rewards) < len(data.traces):
            try:
                for score in prm.score_many(trace.trajectory for trace in data.traces[len(rewards) :]):
                    positions[len(rewards)] = [step.tokens[1] for step in score.steps]
                    rewards.append(score.rewards)
                    advance(1)
            except EdgePRMError as error:  # of the next trace; continue after it
                missing[len(rewards)] = _reason(error)
                rewards.append(None)
                advance(1)
    return Scored(scorer.name, rewards, scorer.aggregate, missing, positions)


def most_frequent_reason(scored: Scored) -> str:
    """Why a column has no rewards at all."""
    counts = Counter(
        missing.reason + (f" ({missing.detail})" if missing.detail else "") for missing in scored.missing.values()
    )
    return counts.most_common(1)[0][0] if counts else "no reason is known"


def _reason(error: EdgePRMError) -> Missing:
    if isinstance(error, ContextLengthError):
        return Missing(f"traces over the context of {error.context_length:,} tokens", f"{error.tokens:,} tokens")
    return Missing("traces that could not be scored", str(error))
