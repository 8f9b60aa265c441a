"""Candidates of one prompt -> Ranking: each costs its own tokens only, and is pruned when it cannot win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge_prm.aggregate import aggregate as aggregate_rewards
from edge_prm.aggregate import check_aggregate, check_early_stop
from edge_prm.encode import Encoded
from edge_prm.errors import BackendError, EdgePRMError, InputError
from edge_prm.judges import Scorer
from edge_prm.score import Ranking, Score, made_score
from edge_prm.trajectory import Trajectory

Candidate: TypeAlias = tuple[Trajectory, Encoded] | InputError
"""A trajectory with its tokens, or why a candidate has none."""


@dataclass(frozen=True)
class RankOptions:
    """How candidates are ranked, and when one is pruned.

    `early_stop` prunes a candidate that cannot pass the leader any more; InputError under an aggregate that a step can
    raise. `prune_below` prunes one at its first reward below it; InputError outside of [0, 1].
    """

    aggregate: str
    early_stop: bool = False
    prune_below: float | None = None

    @property
    def prunes(self) -> bool:
        """Whether a candidate may be left before its last step."""
        return self.early_stop or self.prune_below is not None

    def __post_init__(self) -> None:
        check_aggregate(self.aggregate)
        if self.early_stop:
            check_early_stop(self.aggregate)
        if self.prune_below is not None and not 0 <= self.prune_below <= 1:
            raise InputError(f"prune_below is {self.prune_below!r}; rewards lie between 0 and 1")


def listed(candidates: object) -> list[Any]:
    """Candidates as a list that is not empty; InputError for anything else. A numpy array of completions is a list."""
    if hasattr(candidates, "tolist"):
        candidates = candidates.tolist()
    if isinstance(candidates, (str, bytes)) or not isinstance(candidates, Sequence) or not candidates:
        raise InputError("candidates must be a list with at least one completion (a string, or a list of steps)")
    return list(candidates)


def rank_candidates(scorer: Scorer, candidates: Sequence[Candidate], options: RankOptions) -> Ranking:
    """Score candidates in order on one sequence.

    One that cannot be scored is None in the Ranking, with its error. BackendError when the engine fails, and no
    candidate is scored.
    """
    scored: list[Score | None] = []
    errors: dict[int, EdgePRMError] = {}
    pruned: list[int] = []
    leader: tuple[int, Score] | None = None
    before = scorer.computed
    for index, candidate in enumerate(candidates):
        try:
            score, is_pruned = _score(scorer, candidate, options, None if leader is None else leader[1].score)
        except (InputError, BackendError) as error:
            errors[index] = error
            scored.append(None)
            continue
        scored.append(score)
        if is_pruned:
            pruned.append(index)
        elif leader is None or score.score > leader[1].score:
            leader = index, score
    _check_engine(scored, errors)
    best = None if leader is None else leader[0]
    return Ranking(best, tuple(scored), errors, tuple(pruned), scorer.computed - before)


def _score(scorer: Scorer, candidate: Candidate, options: RankOptions, best_score: float | None) -> tuple[Score, bool]:
    """A candidate's score, and whether it was pruned."""
    if isinstance(candidate, InputError):
        raise candidate
    trajectory, encoded = candidate
    before = scorer.computed
    rewards, is_pruned = _read(scorer, encoded, options, best_score if options.early_stop else None)
    return made_score(trajectory, encoded, rewards, options.aggregate, scorer.computed - before), is_pruned


def _read(scorer: Scorer, encoded: Encoded, options: RankOptions, to_beat: float | None) -> tuple[list[float], bool]:
    """Rewards of the steps that were read, and whether the candidate was pruned: it has a step below `prune_below`, or
    cannot pass `to_beat`."""
    limit = options.prune_below
    if to_beat is None and limit is None:
        return scorer.rewards(encoded), False
    read: list[float] = []
    for reward in scorer.rewards_one_by_one(encoded):
        read.append(reward)
        if limit is not None and reward < limit:
            return read, True
        if to_beat is not None and aggregate_rewards(options.aggregate, read) <= to_beat:
            break
    return read, len(read) < len(encoded.read_at)


def _check_engine(scored: Sequence[Score | None], errors: Mapping[int, EdgePRMError]) -> None:
    """Raise the engine's first error where no candidate has a score."""
    failures = [error for error in errors.values() if isinstance(error, BackendError)]
    if failures and not any(scored):
        raise failures[0]
