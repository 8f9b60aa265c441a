"""Speed of a bundle on this device: prefill by length, pushes of a stream, ranking on a shared prompt.

Prefill runs on random token ids with a reward read every 50 tokens, each time from an empty sequence. Every figure is
of several runs after a warm-up, with their spread. What prepares a run (an empty sequence, forgetting the text of the
last run) is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import edge_prm
from edge_prm.errors import ContextLengthError
from edge_prm.manifest import Manifest
from edge_prm_bench.statistics import metrics

READ_EVERY = 50
LENGTHS = (128, 512, 2048, 8192)
PUSHES = 50
STEP = (
    "so the total number of apples is now the sum of both, which we add up to get the next value here, "
    "and the baskets that are still full we count once more."
)
"""A step of about 40 tokens, its number included."""
PROMPT = "A long problem. " + "There are many apples in the baskets and we count them one by one. " * 12
FIRST = "ABCDEFGHIJKLMNOP"  # candidates begin with different letters, so that they share the prompt only
CANDIDATES = len(FIRST)
RUNS = 5
_TIMED_PUSHES = 5  # at the beginning and at the end of a session


@dataclass(frozen=True)
class Timing:
    """Seconds of `runs` runs: the shortest, the median, the 95% quantile and the longest."""

    best: float
    p50: float
    p95: float
    worst: float
    runs: int


@dataclass(frozen=True)
class Spread:
    """Median and range of several values."""

    p50: float
    low: float
    high: float


@dataclass(frozen=True)
class Prefill:
    """One text of `tokens` tokens; `tokens_per_second` of the best run, as benchmarks of other engines report it."""

    tokens: int
    tokens_per_second: float
    timing: Timing


@dataclass(frozen=True)
class Push:
    """Pushes of a step of `tokens` tokens: the first five after the one that computes the prompt, and the last five.

    `growth` is the median of the last ones over that of the first ones; `computed_beyond_new` is the largest number of
    tokens that a push computed beyond its own.
    """

    tokens: int
    first: Timing
    last: Timing
    growth: float
    computed_beyond_new: int


@dataclass(frozen=True)
class Rank:
    """16 candidates of one prompt: `shared` by `PRM.rank`, `alone` each on a new sequence, which computes the prompt
    again. Both are timed alternately, with an empty cache; `faster` is the ratio alone / shared of each pair of runs.

    Tokens: `computed` by a shared run; `needed`, prompt plus candidates, which cannot be avoided (up to a token where
    each begins); `one_by_one`, of all texts.
    """

    candidates: int
    shared: Timing
    alone: Timing
    faster: Spread
    computed: int
    needed: int
    one_by_one: int


def timing(seconds: Sequence[float]) -> Timing:
    """The Timing of the seconds of some runs."""
    p50, p95 = metrics.quantile(seconds, 0.5), metrics.quantile(seconds, 0.95)
    return Timing(min(seconds), p50, p95, max(seconds), len(seconds))


def spread(values: Sequence[float]) -> Spread:
    """The Spread of some values."""
    return Spread(metrics.quantile(values, 0.5), min(values), max(values))


def measure_prefill(prm: edge_prm.PRM, tokens: int, runs: int = RUNS) -> Prefill:
    """Time one text of `tokens` random tokens, `runs` times after a warm-up."""
    run = prefill_run(prm, tokens)
    run()
    measured = timing([run() for _ in range(runs)])
    return Prefill(tokens, tokens / measured.best, measured)


def prefill_run(prm: edge_prm.PRM, tokens: int) -> Callable[[], float]:
    """A function that computes `tokens` random tokens on a new sequence and returns the seconds of the computation."""
    ids = np.random.default_rng(0).integers(0, min(prm.manifest.architecture.vocabulary, 150_000), tokens)
    read_at = sorted({*range(READ_EVERY - 1, tokens, READ_EVERY), tokens - 1})

    def run() -> float:
        sequence = prm.model.start()
        try:
            return _seconds(lambda: sequence.extend(ids, read_at))
        finally:
            sequence.close()

    return run


def measure_pushes(prm: edge_prm.PRM, pushes: int = PUSHES) -> Push | None:
    """Push steps into a session one by one, up to `pushes`; None where the context does not hold eleven of them."""
    seconds: list[float] = []
    new: list[int] = []
    beyond: list[int] = []
    with prm.session("How many apples are there in all the baskets together?") as session:
        for index in range(pushes):
            if len(new) > 1 and session.tokens + 2 * new[-1] > prm.manifest.context_length:
                break
            before, tokens = session.computed, session.tokens
            start = time.perf_counter()
            session.push(f"{index}: {STEP}")
            seconds.append(time.perf_counter() - start)
            new.append(session.tokens - tokens)
            beyond.append(session.computed - before - new[-1])
    if len(seconds) <= 2 * _TIMED_PUSHES:
        return None
    # The first push computes the prompt too.
    first, last = timing(seconds[1 : 1 + _TIMED_PUSHES]), timing(seconds[-_TIMED_PUSHES:])
    return Push(int(np.median(new[1:])), first, last, last.p50 / first.p50, max(beyond[1:]))


def measure_rank(prm: edge_prm.PRM, runs: int = RUNS) -> Rank | None:
    """Rank 16 candidates of one prompt, and score them one by one; None where the context is too short for them."""
    candidates = [
        [f"{first} basket holds {j} apples and {i * j} pears." for j in range(6)] for i, first in enumerate(FIRST)
    ]
    try:
        tokens = [prm.score(PROMPT, candidate).tokens for candidate in candidates]  # a warm-up too
    except ContextLengthError:
        return None
    prompt_tokens = _prompt_tokens(prm)
    shared, alone, computed = [], [], []
    for _ in range(max(runs, RUNS)):
        alone.append(sum(_seconds_alone(prm, candidate) for candidate in candidates))
        prm.forget()
        start = time.perf_counter()
        ranking = prm.rank(PROMPT, candidates)
        shared.append(time.perf_counter() - start)
        computed.append(ranking.computed)
    faster = spread([separate / together for separate, together in zip(alone, shared, strict=True)])
    needed = prompt_tokens + sum(count - prompt_tokens for count in tokens)
    return Rank(CANDIDATES, timing(shared), timing(alone), faster, max(computed), needed, sum(tokens))


def _prompt_tokens(prm: edge_prm.PRM) -> int:
    """Tokens of the prompt alone: those of a text with a step of one token, less that token."""
    with prm.session(PROMPT) as session:
        session.push("x", last=True)
        return session.tokens - 1


def gop_per_token(manifest: Manifest) -> float:
    """Multiplications and additions of all linear layers of the decoder for one token, in 10^9 operations."""
    shape = manifest.architecture
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return 2 * shape.layers * (attention + 3 * shape.hidden * shape.intermediate) / 1e9


def _seconds_alone(prm: edge_prm.PRM, candidate: list[str]) -> float:
    """Seconds of one candidate on a sequence of its own; the sequence is freed outside the clock."""
    scores = prm.score_many([(PROMPT, candidate)])  # a generator: nothing is computed yet
    return _seconds(lambda: next(scores))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
