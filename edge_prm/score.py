"""What scoring returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """`rewards`: one per step, in [0, 1]; `score`: their aggregate; `tokens`: length of the whole text;
    `computed`: tokens that had to be run through the model for it, less where a prefix was known."""

    rewards: tuple[float, ...]
    score: float
    tokens: int
    computed: int


@dataclass(frozen=True)
class Ranking:
    """Candidates of one prompt, in the order given.

    `best` is the index of the highest score (the first of equals), None when every candidate was stopped early.
    `stopped` holds the indices of candidates given up before their end: their `rewards` are those of the steps read,
    and their `scores` the aggregate of these. `computed` counts the tokens run through the model.
    """

    best: int | None
    scores: tuple[float, ...]
    rewards: tuple[tuple[float, ...], ...]
    tokens: tuple[int, ...]
    stopped: tuple[int, ...]
    computed: int
