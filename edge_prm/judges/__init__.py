"""Judges: what turns a trajectory into step rewards.

A judge reads text (`encode`) and starts scorers, each with a sequence of its own. `discriminative` is the judge of this
version: it reads rewards from hidden states, in one pass over the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge_prm.encode import Encoded
    from edge_prm.errors import BackendError
    from edge_prm.trajectory import Trajectory


class Scorer(Protocol):
    """Scores encoded trajectories on one sequence; what two of them have in common at the start is computed once.

    Not to be shared by threads.
    """

    @property
    def computed(self) -> int:
        """Tokens run through the model since the sequence was started."""

    @property
    def tokens(self) -> int:
        """Tokens held for the next trajectory to begin with."""

    def rewards(self, encoded: Encoded) -> list[float]:
        """Return the reward of each step, in [0, 1]; BackendError when the engine fails."""

    def rewards_one_by_one(self, encoded: Encoded) -> Iterator[float]:
        """Yield each step's reward as soon as it is computed, so that the caller may stop in between."""

    def branch(self) -> Scorer:
        """Return a scorer with a sequence of its own that begins with the same tokens."""

    def close(self) -> None:
        """Free the sequence."""


class Judge(Protocol):
    """Turns trajectories into step rewards. Safe to use from several threads."""

    @property
    def separator_text(self) -> str | None:
        """The text that closes a step in a completion made for this judge; None where that is a blank line."""

    @property
    def default_aggregate(self) -> str:
        """How step rewards become a score when the caller names no aggregate."""

    def encode(self, trajectory: Trajectory, known: Encoded | None = None) -> Encoded:
        """Return what a scorer reads, before any model work; `known` is that of the trajectory's first steps.

        Raises InputError for text that cannot be read and ContextLengthError for text that is too long.
        """

    def start(self) -> Scorer:
        """Return a scorer with an empty sequence; BackendError when none can be started."""

    @property
    def batch_tokens(self) -> int:
        """The most tokens that the device computes in one run of several texts; 0 where it takes one at a time."""

    def rewards(self, texts: Sequence[Encoded]) -> list[list[float] | BackendError]:
        """Return the rewards of each text, in runs of several; the error in their place where the engine failed."""
