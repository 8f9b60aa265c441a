"""Many texts -> scores in order: one after the other on one sequence, or several in a run where the device profits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edge_prm.batches import windows
from edge_prm.encode import Encoded
from edge_prm.errors import BackendError, EdgePRMError, InputError
from edge_prm.judges import Judge
from edge_prm.judges.discriminative import common_prefix
from edge_prm.ranking import Candidate
from edge_prm.score import Score, made_score

MOST_RECOMPUTED = 4
"""Candidates of one prompt are computed in batches, each with the prompt, where that is at most so many times the
tokens of computing the prompt once. A guess until it is measured on a GPU."""


def scores_in_turn(judge: Judge, items: Iterable[Candidate], aggregate: str) -> Iterator[Score | EdgePRMError]:
    """Score each item when it is asked for; what two in a row have in common at the start is computed once."""
    scorer = judge.start()
    try:
        for item in items:
            if isinstance(item, InputError):
                yield item
                continue
            trajectory, encoded = item
            before = scorer.computed
            try:
                rewards = scorer.rewards(encoded)
            except BackendError as error:
                yield error
                continue
            yield made_score(trajectory, encoded, rewards, aggregate, scorer.computed - before)
    finally:
        scorer.close()


def scores_in_batches(judge: Judge, items: Iterable[Candidate], aggregate: str) -> Iterator[Score | EdgePRMError]:
    """Score a window of items at a time, those of like length in one run."""
    for window in windows(items):
        texts = [item[1] for item in window if not isinstance(item, InputError)]
        found = iter(judge.rewards(texts))
        for item in window:
            if isinstance(item, InputError):
                yield item
                continue
            rewards = next(found)
            if isinstance(rewards, BackendError):
                yield rewards
            else:
                trajectory, encoded = item
                yield made_score(trajectory, encoded, rewards, aggregate, len(encoded.ids))


def raising(scores: Iterator[Score | EdgePRMError]) -> Iterator[Score]:
    """The scores up to the first error, which is raised."""
    for score in scores:
        if isinstance(score, EdgePRMError):
            raise score
        yield score


def profits(judge: Judge, candidates: Sequence[Candidate]) -> bool:
    """Whether candidates of one prompt are computed in batches, although each then computes the prompt again."""
    if not judge.batch_tokens:
        return False
    texts = [candidate[1].ids for candidate in candidates if not isinstance(candidate, InputError)]
    if len(texts) < 2:
        return False
    first, rest = texts[0], texts[1:]
    shared = min(common_prefix(first, other) for other in rest)
    in_batches = sum(map(len, texts))
    return in_batches <= MOST_RECOMPUTED * (in_batches - shared * len(rest))


class BatchScorer:
    """The rewards of candidates, computed in batches when the first is asked for; see `edge_prm.judges.Scorer`."""

    tokens = 0

    def __init__(self, judge: Judge, candidates: Sequence[Candidate]) -> None:
        self._judge = judge
        self._texts = [candidate[1] for candidate in candidates if not isinstance(candidate, InputError)]
        self._found: dict[int, list[float] | BackendError] | None = None
        self._computed = 0

    @property
    def computed(self) -> int:
        """Tokens of the texts whose rewards were asked for."""
        return self._computed

    def rewards(self, encoded: Encoded) -> list[float]:
        """The rewards of one of the candidates."""
        if self._found is None:
            pairs = zip(self._texts, self._judge.rewards(self._texts), strict=True)
            self._found = {id(text): rewards for text, rewards in pairs}
        rewards = self._found[id(encoded)]
        if isinstance(rewards, BackendError):
            raise rewards
        self._computed += len(encoded.ids)
        return rewards

    def rewards_one_by_one(self, encoded: Encoded) -> Iterator[float]:
        """The same; nothing is saved by stopping in between."""
        yield from self.rewards(encoded)

    def branch(self) -> BatchScorer:
        """Itself: it holds no sequence."""
        return self

    def close(self) -> None:
        """Nothing to free."""
