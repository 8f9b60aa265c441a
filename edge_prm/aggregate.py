"""From step rewards to one score: last | mean | min | prod | reasonflux."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edge_prm.errors import InputError

REASONFLUX_ALPHA = 1.0
"""Weight of the final reward in `reasonflux`: the value that does best on MATH500 in the ReasonFlux-PRM paper."""


def _mean(rewards: Sequence[float]) -> float:
    return math.fsum(rewards) / len(rewards)


def _reasonflux(rewards: Sequence[float]) -> float:
    """mean(step rewards) + alpha * final reward, the total of the ReasonFlux-PRM paper (equation for r_total)."""
    return _mean(rewards) + REASONFLUX_ALPHA * rewards[-1]


AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda rewards: rewards[-1],
    "mean": _mean,
    "min": min,
    "prod": math.prod,
    "reasonflux": _reasonflux,
}


def highest(name: str) -> float:
    """The highest score that an aggregate can give; rewards lie in [0, 1]."""
    return 1.0 + REASONFLUX_ALPHA if name == "reasonflux" else 1.0


NON_INCREASING = frozenset({"min", "prod"})
"""Aggregates that one more step can only lower (rewards lie in [0, 1]), so a candidate's bound is known early."""


def check_aggregate(name: str) -> str:
    """Return `name` if it is a known aggregate; InputError otherwise."""
    if name not in AGGREGATES:
        raise InputError(f"aggregate {name!r} is not known; choose one of {', '.join(AGGREGATES)}")
    return name


def check_early_stop(name: str) -> None:
    """InputError unless `name` is an aggregate that a step can only lower."""
    if name not in NON_INCREASING:
        known = " or ".join(sorted(NON_INCREASING))
        raise InputError(f"early_stop needs aggregate {known}, which a step can only lower; aggregate is {name!r}")


def aggregate(name: str, rewards: Sequence[float]) -> float:
    """Return the score of a trajectory with these step rewards (at least one)."""
    return float(AGGREGATES[check_aggregate(name)](rewards))
