"""Speed of a bundle on this device: prefill by length, pushes of a stream, ranking on a shared prompt.

Prefill runs on random token ids with a reward read every 50 tokens, each time from an empty sequence. Every figure is
of several runs after a warm-up, and tells their spread.
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
from edge_prm_bench import metrics

READ_EVERY = 50
LENGTHS = (128, 512, 2048, 8192)
PUSHES = 50
STEP = (
    "so the total number of apples is now the sum of both, which we add up to get the next value here, "
    "and the baskets that are still full we count once more."
)
"""About 40 tokens with its number."""
PROMPT = "A long problem. " + "There are many apples in the baskets and we count them one by one. " * 12
CANDIDATES = 16
RUNS = 5
SECONDS_PER_LENGTH = 40.0  # a length that takes long is run fewer times, twice at least


@dataclass(frozen=True)
class Timing:
    """Seconds of `runs` runs."""

    best: float
    p50: float
    p95: float
    runs: int


@dataclass(frozen=True)
class Prefill:
    """`tokens_per_second` is of the best run, as other engines' benchmarks report it."""

    tokens: int
    tokens_per_second: float
    timing: Timing


@dataclass(frozen=True)
class Push:
    """Pushes of a step of `tokens` tokens; `growth` is the time of the last ones over that of the first ones.

    `computed_beyond_new` is the largest number of tokens that a push computed beyond its own.
    """

    tokens: int
    first: Timing
    last: Timing
    growth: float
    computed_beyond_new: int


@dataclass(frozen=True)
class Rank:
    """16 candidates on one prompt, with the prompt computed once and, to compare, one by one from nothing.

    `needed` is prompt plus candidates: the tokens that cannot be avoided.
    """

    candidates: int
    shared: Timing
    alone: Timing
    computed: int
    needed: int
    one_by_one: int


def time_runs(run: Callable[[], Any], runs: int = RUNS, seconds: float = SECONDS_PER_LENGTH) -> Timing:
    """Time `run` after one warm-up, until `runs` runs are done or, from the second run on, `seconds` have passed."""
    run()
    taken: list[float] = []
    while len(taken) < runs and (len(taken) < 2 or sum(taken) < seconds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return timing(taken)


def timing(seconds: Sequence[float]) -> Timing:
    return Timing(min(seconds), metrics.quantile(seconds, 0.5), metrics.quantile(seconds, 0.95), len(seconds))


def measure_prefill(prm: edge_prm.PRM, tokens: int, runs: int = RUNS) -> Prefill:
    """Time one text of `tokens` random tokens."""
    ids = np.random.default_rng(0).integers(0, min(prm.manifest.architecture.vocabulary, 150_000), tokens)
    read_at = sorted({*range(READ_EVERY - 1, tokens, READ_EVERY), tokens - 1})

    def run() -> None:
        sequence = prm.model.start()
        sequence.extend(ids, read_at)
        sequence.close()

    measured = time_runs(run, runs)
    return Prefill(tokens, tokens / measured.best, measured)


def measure_pushes(prm: edge_prm.PRM, pushes: int = PUSHES) -> Push | None:
    """Push one step after the other into a session; None where the context does not hold ten of them."""
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
    if len(seconds) < 10:
        return None
    # The first push computes the prompt too.
    first, last = timing(seconds[1:4]), timing(seconds[-3:])
    return Push(int(np.median(new[1:])), first, last, last.p50 / first.p50, max(beyond[1:]))


def measure_rank(prm: edge_prm.PRM) -> Rank | None:
    """Rank candidates of one prompt, and score them one by one; None where the context is too short for them."""
    candidates = [[f"Basket {i} holds {j} apples and {i * j} pears." for j in range(6)] for i in range(CANDIDATES)]
    try:
        alone = [prm.score(PROMPT, candidate).tokens for candidate in candidates]
    except ContextLengthError:
        return None
    with prm.session(PROMPT) as session:  # the prompt's own length: that of a text less its step
        session.push("x", last=True)
        prompt_tokens = session.tokens - 1
    one_by_one = timing([_seconds(lambda: _score_alone(prm, candidates)) for _ in range(2)])
    computed: list[int] = []

    def rank() -> None:
        _forget(prm)
        computed.append(prm.rank(PROMPT, candidates).computed)

    shared = timing([_seconds(rank) for _ in range(3)])
    needed = prompt_tokens + sum(tokens - prompt_tokens for tokens in alone)
    return Rank(CANDIDATES, shared, one_by_one, max(computed), needed, sum(alone))


def gop_per_token(manifest: Manifest) -> float:
    """Multiplications and additions of all linear layers for one token, in billions."""
    shape = manifest.architecture
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return 2 * shape.layers * (attention + 3 * shape.hidden * shape.intermediate) / 1e9


def _score_alone(prm: edge_prm.PRM, candidates: list[list[str]]) -> None:
    for candidate in candidates:
        _forget(prm)
        prm.score(PROMPT, candidate)


def _forget(prm: edge_prm.PRM) -> None:
    """Score a text that has nothing in common with the next, so that no prefix of it is known."""
    prm.score("!", ["?"])


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
