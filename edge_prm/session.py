"""A trajectory that is still being written: push steps, branch, trim."""

from __future__ import annotations

import threading
from types import TracebackType

from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import InputError
from edge_prm.judges import Scorer
from edge_prm.score import Score, made_score
from edge_prm.split import STEP_SEPARATOR, kinds_of
from edge_prm.trajectory import Step, Trajectory, check_prompt, check_step


class Session:
    """A prompt and the steps pushed so far. Made by `PRM.session`; safe to use from several threads.

    The rewards are bit for bit those that `PRM.score` gives for the same steps.
    """

    def __init__(self, scorer: Scorer, encoder: Encoder, prompt: str, default_aggregate: str) -> None:
        self._scorer = scorer
        self._encoder = encoder
        self._prompt = check_prompt(prompt)
        self._default_aggregate = default_aggregate
        self._steps: list[Step] = []
        self._rewards: list[float] = []
        self._encoded: Encoded | None = None
        self._computed_before = scorer.computed
        self._lock = threading.RLock()
        self._closed = False

    @property
    def prompt(self) -> str:
        """The prompt, as it was given."""
        return self._prompt

    @property
    def steps(self) -> tuple[str, ...]:
        """The text of each step pushed so far."""
        return tuple(step.text for step in self._steps)

    @property
    def rewards(self) -> tuple[float, ...]:
        """The reward of each step pushed so far."""
        return tuple(self._rewards)

    @property
    def tokens(self) -> int:
        """Tokens of the text up to now: prompt, steps and separators."""
        return 0 if self._encoded is None else len(self._encoded.ids)

    @property
    def computed(self) -> int:
        """Tokens run through the model since the session began (or branched off)."""
        return self._scorer.computed - self._computed_before

    def push(self, step: str, *, last: bool = False) -> float:
        """Append a step and return its reward; only the new tokens are computed.

        A step is read at the separator that closes it; `last=True` says that no other step follows, so that it is read
        at its own last token, as the last step of `PRM.score` is. Raises InputError for an empty step or a push after
        the last step, ContextLengthError when the text outgrows the context; the session then stays as it was.
        """
        with self._lock:
            self._check_open()
            if self._steps and not self._steps[-1].separator:
                raise InputError("the last step was pushed already; trim the session or start another")
            text = check_step(step, f"step {len(self._steps)}")
            steps = [*self._steps, Step(text, "" if last else STEP_SEPARATOR)]
            encoded = self._encoder.encode(Trajectory(self._prompt, tuple(steps)), self._encoded)
            reward = self._scorer.rewards(Encoded(encoded.ids, encoded.read_at[-1:]))[0]
            self._steps = steps
            self._rewards.append(reward)
            self._encoded = encoded
            return reward

    def score(self, aggregate: str | None = None) -> Score:
        """Return the Score of the steps pushed so far; InputError when there are none."""
        with self._lock:
            if not self._rewards:
                raise InputError("no step was pushed yet, so there is nothing to score")
            name = aggregate or self._default_aggregate
            assert self._encoded is not None, "there are rewards"
            kinds = kinds_of(self.steps)
            steps = tuple(
                Step(step.text, step.separator, kind, index)
                for index, (step, kind) in enumerate(zip(self._steps, kinds, strict=True))
            )
            return made_score(Trajectory(self._prompt, steps), self._encoded, self._rewards, name, self.computed)

    def trim(self, steps: int) -> None:
        """Forget all but the first `steps` steps, to write on from there; InputError when there are fewer."""
        with self._lock:
            self._check_open()
            if isinstance(steps, bool) or not hasattr(steps, "__index__") or not 0 <= steps <= len(self._steps):
                raise InputError(f"cannot trim to {steps!r} steps: the session holds {len(self._steps)}")
            del self._steps[steps:]
            del self._rewards[steps:]
            self._encoded = self._encoder.encode(Trajectory(self._prompt, tuple(self._steps))) if steps else None

    def branch(self) -> Session:
        """Return a session of its own that begins with the same prompt and steps; nothing is computed again."""
        with self._lock:
            self._check_open()
            other = Session(self._scorer.branch(), self._encoder, self._prompt, self._default_aggregate)
            other._steps, other._rewards, other._encoded = list(self._steps), list(self._rewards), self._encoded
            return other

    def close(self) -> None:
        """Free the KV cache. Rewards and score stay readable."""
        with self._lock:
            self._closed = True
            self._scorer.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the session is closed; start another with prm.session(prompt)")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
