"""The judge that reads rewards from hidden states: an encoder, a model with its reward head, and sequences.

A PrefixScorer makes every way of scoring cheap: it holds one sequence in an engine and computes only the tokens after
the longest common prefix with what it holds. Prompt and completion can share a token, so the prefix is one of token
ids, never "the prompt's tokens".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edge_prm.arrays import Float32, Int64
from edge_prm.backends import Backend, Model
from edge_prm.batches import plan
from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import BackendError
from edge_prm.trajectory import Trajectory

_log = logging.getLogger("edge_prm")


class DiscriminativeJudge:
    """An encoder and a model; see `edge_prm.judges.Judge` for the contract."""

    def __init__(self, encoder: Encoder, model: Model, default_aggregate: str) -> None:
        self._encoder = encoder
        self._model = model
        self._default_aggregate = default_aggregate

    @property
    def separator_text(self) -> str | None:
        """The text that closes a step in a completion made for this judge; see InputFormat.separator_text."""
        return self._encoder.separator_text

    @property
    def default_aggregate(self) -> str:
        """The aggregate of the manifest's head."""
        return self._default_aggregate

    def encode(self, trajectory: Trajectory, known: Encoded | None = None) -> Encoded:
        """Return token ids and read positions; see Encoder.encode."""
        return self._encoder.encode(trajectory, known)

    def start(self) -> PrefixScorer:
        """Return a scorer on a new sequence; BackendError when the engine can start none."""
        return PrefixScorer(self._model.start())

    @property
    def batch_tokens(self) -> int:
        """The limit of the engine's batches; 0 where it has none."""
        batches = getattr(self._model, "batches", None)
        return 0 if batches is None else int(batches.limit)

    def rewards(self, texts: Sequence[Encoded]) -> list[list[float] | BackendError]:
        """Return the rewards of each text: several in a run where they fit into the engine's limit, else one by one."""
        found: list[list[float] | BackendError] = [[] for _ in texts]
        for batch in plan([len(text.ids) for text in texts], self.batch_tokens):
            for index, rewards in zip(batch, self._batch([texts[index] for index in batch]), strict=True):
                found[index] = rewards
        return found

    def _batch(self, texts: list[Encoded]) -> list[list[float] | BackendError]:
        if len(texts) == 1:
            return [self._alone(texts[0])]
        batches = self._model.batches
        assert batches is not None
        try:
            rewards = batches.rewards([text.ids for text in texts], [text.read_at for text in texts])
        except BackendError as error:  # such as a device without so much memory
            _log.info("a batch of %d texts failed (%s); scoring them one by one", len(texts), error)
            return [self._alone(text) for text in texts]
        return [_checked(text.read_at, found) for text, found in zip(texts, rewards, strict=True)]

    def _alone(self, text: Encoded) -> list[float] | BackendError:
        try:
            scorer = self.start()
        except BackendError as error:
            return error
        try:
            return scorer.rewards(text)
        except BackendError as error:
            return error
        finally:
            scorer.close()


class PrefixScorer:
    """Rewards of encoded trajectories, one after the other, on one sequence. Not to be shared by threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ids = np.empty(0, dtype=np.int64)
        self._known: dict[int, float] = {}

    @property
    def computed(self) -> int:
        """Tokens run through the model since the sequence was started."""
        return self._backend.computed

    @property
    def tokens(self) -> int:
        """Tokens held for the next trajectory to begin with."""
        return len(self._ids)

    def rewards(self, encoded: Encoded) -> list[float]:
        """Return the reward of each step; only what is not yet known is computed."""
        common = common_prefix(self._ids, encoded.ids)
        self._known = {at: reward for at, reward in self._known.items() if at < common}
        missing = [at for at in encoded.read_at if at not in self._known]
        if missing:
            self._compute(encoded, min(common, missing[0]), missing)
        return [self._known[at] for at in encoded.read_at]

    def rewards_one_by_one(self, encoded: Encoded) -> Iterator[float]:
        """Yield each step's reward as soon as it is computed, so that the caller may stop in between."""
        for at in encoded.read_at:
            yield self.rewards(Encoded(encoded.ids[: at + 1], (at,)))[0]

    def _compute(self, encoded: Encoded, start: int, missing: list[int]) -> None:
        ids = encoded.ids[: missing[-1] + 1]  # nothing is read after the last position
        self._ids = self._ids[:start]  # if the engine fails half-way, only this is relied on
        self._backend.trim(start)
        for at, reward in zip(missing, self._backend.extend(ids[start:], [at - start for at in missing]), strict=True):
            self._known[at] = _finite(at, reward)
        self._ids = ids

    def branch(self) -> PrefixScorer:
        """Return a scorer with a sequence of its own that begins with the same tokens; nothing is computed again."""
        other = PrefixScorer(self._backend.branch())
        other._ids, other._known = self._ids, dict(self._known)
        return other

    def close(self) -> None:
        """Free the KV cache."""
        self._backend.close()
        self._ids = self._ids[:0]
        self._known = {}


def _checked(read_at: Sequence[int], rewards: Float32) -> list[float] | BackendError:
    try:
        return [_finite(at, reward) for at, reward in zip(read_at, rewards, strict=True)]
    except BackendError as error:
        return error


def _finite(at: int, reward: Any) -> float:
    if not math.isfinite(reward):
        raise BackendError(f"the reward at token {at} is {reward}; verify the bundle with `edge-prm check`")
    return float(reward)


def common_prefix(left: Int64, right: Int64) -> int:
    """The number of token ids that both begin with."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length
