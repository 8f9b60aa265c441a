"""What scoring returns, and the only place where it becomes JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_prm.aggregate import aggregate as aggregate_rewards
from edge_prm.errors import EdgePRMError

if TYPE_CHECKING:
    from edge_prm.encode import Encoded
    from edge_prm.trajectory import Trajectory

SCHEMA = 2
"""Version of the JSON of `Score.as_dict` and `Ranking.as_dict`; a field that changes its name or meaning raises it.
2: `pruned` of a Ranking, which was `stopped`."""


@dataclass(frozen=True)
class StepScore:
    """A step as it was scored.

    `kind` is `thinking` or `response`; `reward` lies in [0, 1]; `tokens` is the half-open range of its tokens,
    separator included, in the token ids of the complete text; `place` is its index in the list of steps that was given.
    """

    text: str
    kind: str
    reward: float
    tokens: tuple[int, int]
    place: int


@dataclass(frozen=True)
class Score:
    """Rewards of a trajectory.

    `score` is the aggregate of the rewards, by the way named in `aggregate`. `tokens` counts the tokens of the complete
    text; `computed` counts those that were run through the model, which are fewer where a prefix was known.
    `cut_at` is the bundle's own separator where the completion held it and was cut there, else "".
    """

    steps: tuple[StepScore, ...]
    score: float
    aggregate: str
    tokens: int
    computed: int
    cut_at: str = ""

    @property
    def rewards(self) -> tuple[float, ...]:
        """The reward of each step, in [0, 1]."""
        return tuple(step.reward for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """The score as JSON values, with the version of this layout under `schema`."""
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "score": self.score,
            "aggregate": self.aggregate,
            "rewards": [step.reward for step in self.steps],
            "steps": [
                {
                    "text": step.text,
                    "kind": step.kind,
                    "reward": step.reward,
                    "tokens": list(step.tokens),
                    "place": step.place,
                }
                for step in self.steps
            ],
            "tokens": self.tokens,
            "computed": self.computed,
        }
        return facts | ({"cut_at": self.cut_at} if self.cut_at else {})


@dataclass(frozen=True)
class Ranking:
    """Candidates of a prompt, in the order given.

    `candidates` holds a Score for each, None where one could not be scored; `errors` says why, by index. `best` is the
    index of the highest score (the first of equals), None when no candidate was scored to its end. `pruned` holds the
    indices of candidates that were pruned: their rewards are those of the steps read, and their score the aggregate of
    these. `computed` counts the tokens run through the model.
    """

    best: int | None
    candidates: tuple[Score | None, ...]
    errors: Mapping[int, EdgePRMError]
    pruned: tuple[int, ...]
    computed: int

    @property
    def scores(self) -> tuple[float | None, ...]:
        """The score of each candidate; None where it has none."""
        return tuple(None if score is None else score.score for score in self.candidates)

    @property
    def rewards(self) -> tuple[tuple[float, ...] | None, ...]:
        """The step rewards of each candidate; None where it has none."""
        return tuple(None if score is None else score.rewards for score in self.candidates)

    @property
    def tokens(self) -> tuple[int | None, ...]:
        """Tokens of the complete text of each candidate; None where it was not scored."""
        return tuple(None if score is None else score.tokens for score in self.candidates)

    def as_dict(self) -> dict[str, Any]:
        """The ranking as JSON values; a candidate without a score is null, with its reason under `errors`."""
        return {
            "schema": SCHEMA,
            "best": self.best,
            "scores": list(self.scores),
            "rewards": [None if rewards is None else list(rewards) for rewards in self.rewards],
            "candidates": [None if score is None else score.as_dict() for score in self.candidates],
            "errors": [{"candidate": index, "reason": str(error)} for index, error in sorted(self.errors.items())],
            "pruned": list(self.pruned),
            "computed": self.computed,
        }


def made_score(trajectory: Trajectory, encoded: Encoded, rewards: Sequence[float], name: str, computed: int) -> Score:
    """The Score of the steps that have a reward: all of a trajectory, or the first ones of a pruned candidate."""
    starts = [encoded.start, *(at + 1 for at in encoded.read_at)]
    steps = tuple(
        StepScore(step.text, step.kind, reward, (start, at + 1), step.place)
        for step, reward, start, at in zip(trajectory.steps, rewards, starts, encoded.read_at, strict=False)
    )
    score = aggregate_rewards(name, rewards)
    return Score(steps, score, name, len(encoded.ids), computed, trajectory.cut_at)


_LONE_SURROGATE = re.compile(
    r"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}", re.IGNORECASE
)


_DEEPEST = 100


def json_line(value: Any) -> str:
    """A value as a line of valid JSON in ASCII.

    What JSON does not know becomes what it knows: NaN and infinity become null, a lone surrogate U+FFFD, numpy's
    numbers and arrays plain ones, anything else its text.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_plain(value), allow_nan=False)
    suspicious = "\\ud" in text and _LONE_SURROGATE.search(text)
    return _without_lone_surrogates(text) if suspicious else text


def _plain(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > _DEEPEST:
        return "..."
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), depth + 1)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return str(value)


def _without_lone_surrogates(text: str) -> str:
    decoded = json.loads(text)
    return json.dumps(_repaired(decoded), allow_nan=False)


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_repaired(key): _repaired(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    return value


def first_weak(rewards: Sequence[float], weak_below: float) -> int | None:
    """The index of the first reward below `weak_below`; None where no reward is."""
    return next((index for index, reward in enumerate(rewards) if reward < weak_below), None)
