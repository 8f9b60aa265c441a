"""The front door: load a bundle, then score, rank, or open a session."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from edge_prm.aggregate import aggregate as aggregate_rewards
from edge_prm.aggregate import check_aggregate, check_early_stop
from edge_prm.backends import Model, load_model
from edge_prm.bundle import Bundle, open_bundle
from edge_prm.encode import TOKENIZER_NAME, Encoded, Encoder
from edge_prm.errors import ContextLengthError, InputError
from edge_prm.manifest import Manifest
from edge_prm.score import Ranking, Score
from edge_prm.session import PrefixScorer, Session
from edge_prm.trajectory import Trajectory, check_prompt

Steps = str | Sequence[str]

IDLE_TOKENS = 4096
"""A sequence that holds more than this is not kept for the next call: its KV cache would be hundreds of megabytes."""


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    gpu_layers: int | None = None,
) -> PRM:
    """Load a bundle folder written by `edge-prm export`.

    `threads`: threads of the engine, by default one per core that this process may use. `device`: `cpu`, `gpu` (GGUF
    bundles, where llama-cpp-python was built for one), or `auto`; `gpu_layers`: layers that the GPU holds, all by
    default. A model belongs to the process that loaded it: a forked child must load its own. Raises BundleError when
    the bundle is missing, damaged or newer than this edge-prm, MissingExtraError when its engine is not installed,
    InputError for a bad option.
    """
    bundle = open_bundle(path)
    return PRM(bundle, threads=threads, backend=backend, device=device, gpu_layers=gpu_layers)


class PRM:
    """A process reward model. Safe to use from several threads; scores are the same bits however they are asked for."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        backend: str = "auto",
        device: str = "auto",
        gpu_layers: int | None = None,
    ) -> None:
        self._bundle = bundle
        self.folder = bundle.folder
        self.threads = threads
        self._idle: PrefixScorer | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        pool = ThreadPoolExecutor(1)  # tokenizer and weights take their time on a core each
        model: Future[Model] = pool.submit(load_model, bundle, backend, threads, device, gpu_layers)
        try:
            self._encoder = Encoder(bundle.folder / TOKENIZER_NAME, bundle.manifest)
            self.model = model.result()
        except BaseException:
            model.add_done_callback(_close)  # now or, after an interrupt, when it is loaded
            raise
        finally:
            pool.shutdown(wait=False)  # an interrupt goes through at once
        self.model.spare = _weak(self._give_idle_up)

    @property
    def manifest(self) -> Manifest:
        return self._bundle.manifest

    def score(self, prompt: str, steps: Steps, *, aggregate: str | None = None, split: str = "blank") -> Score:
        """Score one trajectory: a prompt, and its steps as a list or as one completion that `split` divides.

        `split`: `blank` (blank lines), `lines`, or a regular expression that matches separators. `aggregate`: last,
        mean, min, prod or reasonflux; the bundle's own by default. What two calls in a row have in common at the start
        is computed once. Raises InputError, ContextLengthError or BackendError.
        """
        name = self._aggregate(aggregate)
        encoded = self._encoder.encode(Trajectory.of(prompt, steps, split=split))
        with self._scorer() as scorer:
            before = scorer.computed
            rewards = tuple(scorer.rewards(encoded))
            return Score(rewards, aggregate_rewards(name, rewards), len(encoded.ids), scorer.computed - before)

    def score_many(
        self, trajectories: Iterable[Trajectory | tuple[str, Steps]], *, aggregate: str | None = None
    ) -> Iterator[Score]:
        """Score trajectories one after the other, in constant memory: each is read when its score is asked for.

        Those that follow each other with the same prompt (or any other common beginning) share its computation.
        """
        return self._scores(trajectories, self._aggregate(aggregate))

    def _scores(self, trajectories: Iterable[Trajectory | tuple[str, Steps]], name: str) -> Iterator[Score]:
        scorer = PrefixScorer(self.model.start())
        try:
            for item in trajectories:
                trajectory = item if isinstance(item, Trajectory) else Trajectory.of(*item)
                encoded = self._encoder.encode(trajectory)
                before = scorer.computed
                rewards = tuple(scorer.rewards(encoded))
                yield Score(rewards, aggregate_rewards(name, rewards), len(encoded.ids), scorer.computed - before)
        finally:
            scorer.close()

    def session(self, prompt: str) -> Session:
        """Open a session for a trajectory that is still being written; use it in a `with` block or close it."""
        check_prompt(prompt)
        return Session(PrefixScorer(self.model.start()), self._encoder, prompt, self._aggregate(None))

    def rank(
        self,
        prompt: str,
        candidates: Sequence[Steps],
        *,
        aggregate: str | None = None,
        split: str = "blank",
        early_stop: bool = False,
        threshold: float | None = None,
    ) -> Ranking:
        """Score candidates for one prompt; the prompt is computed once, each candidate costs its own tokens only.

        `early_stop`: give a candidate up as soon as it cannot win any more; possible under the aggregates that a step
        can only lower (min, prod). `threshold`: give a candidate up at its first step below it, under any aggregate.
        """
        name = self._aggregate(aggregate)
        if early_stop:
            check_early_stop(name)
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold!r}; rewards lie between 0 and 1")
        if isinstance(candidates, (str, bytes)) or not isinstance(candidates, Sequence) or not candidates:
            raise InputError("candidates must be a list with at least one completion (a string, or a list of steps)")
        check_prompt(prompt)
        encoded = [self._encode_candidate(prompt, steps, split, index) for index, steps in enumerate(candidates)]
        scores: list[float] = []
        rewards: list[tuple[float, ...]] = []
        stopped: list[int] = []
        best: int | None = None
        with self._scorer() as scorer:
            before = scorer.computed
            for index, candidate in enumerate(encoded):
                to_beat = scores[best] if early_stop and best is not None else None
                read, given_up = _read(scorer, candidate, name, to_beat, threshold)
                rewards.append(tuple(read))
                scores.append(aggregate_rewards(name, read))
                if given_up:
                    stopped.append(index)
                elif best is None or scores[index] > scores[best]:
                    best = index
            computed = scorer.computed - before
        tokens = tuple(len(candidate.ids) for candidate in encoded)
        return Ranking(best, tuple(scores), tuple(rewards), tokens, tuple(stopped), computed)

    def close(self) -> None:
        """Free the weights. Open sessions can no longer be pushed to."""
        with self._lock:
            self._idle = None
        self.model.close()

    def __enter__(self) -> PRM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _aggregate(self, name: str | None) -> str:
        return check_aggregate(name or self.manifest.head.default_aggregate)

    def _encode_candidate(self, prompt: str, steps: Steps, split: str, index: int) -> Encoded:
        place = f"candidate {index}"
        try:
            return self._encoder.encode(Trajectory.of(prompt, steps, split=split))
        except ContextLengthError as error:
            raise ContextLengthError(error.tokens, error.context_length, place) from None
        except InputError as error:
            raise InputError(f"{place}: {error}") from None

    @contextmanager
    def _scorer(self) -> Iterator[PrefixScorer]:
        """Lend the idle sequence, with the last text still in it, or a new one when another thread has it."""
        if os.getpid() != self._process:  # in a forked child the lock may be held by a thread that is not there
            self.model.start()  # an engine says that it cannot be used here
        with self._lock:
            scorer, self._idle = self._idle, None
        if scorer is None:
            scorer = PrefixScorer(self.model.start())
        lend_again = False
        try:
            yield scorer
            lend_again = scorer.tokens <= IDLE_TOKENS  # after an error it is not lent again
        finally:
            if lend_again:
                with self._lock:
                    scorer, self._idle = self._idle, scorer  # that of another thread may have come back before
            if scorer is not None:
                scorer.close()

    def _give_idle_up(self) -> None:
        with self._lock:
            scorer, self._idle = self._idle, None
        if scorer is not None:
            scorer.close()


def _close(loading: Future[Model]) -> None:
    """Free a model that nobody takes."""
    if loading.exception() is None:
        loading.result().close()


def _weak(method: Callable[[], None]) -> Callable[[], None]:
    """A method of an object that the result does not keep alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (found := reference()) is not None:
            found()

    return call


def _read(
    scorer: PrefixScorer, candidate: Encoded, name: str, to_beat: float | None, threshold: float | None
) -> tuple[list[float], bool]:
    """Return a candidate's rewards and whether it was given up: below `threshold`, or unable to pass `to_beat`."""
    if to_beat is None and threshold is None:
        return scorer.rewards(candidate), False
    read: list[float] = []
    for reward in scorer.rewards_one_by_one(candidate):
        read.append(reward)
        if threshold is not None and reward < threshold:
            return read, True
        if to_beat is not None and aggregate_rewards(name, read) <= to_beat:
            break
    return read, len(read) < len(candidate.read_at)
