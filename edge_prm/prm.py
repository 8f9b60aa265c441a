"""The front door: load a bundle, then score, rank, or open a session."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, overload

from edge_prm.aggregate import aggregate as aggregate_rewards
from edge_prm.aggregate import check_aggregate, check_early_stop
from edge_prm.backends import Model, load_model
from edge_prm.bundle import Bundle, open_bundle
from edge_prm.encode import TOKENIZER_NAME, Encoded, Encoder
from edge_prm.errors import BackendError, ContextLengthError, EdgePRMError, InputError
from edge_prm.judges.discriminative import DiscriminativeJudge, PrefixScorer
from edge_prm.manifest import Manifest
from edge_prm.score import Ranking, Score, made_score
from edge_prm.session import Session
from edge_prm.split import shown, splitter
from edge_prm.trajectory import Trajectory, check_prompt

Steps = str | Sequence[str]

ON_ERROR = ("raise", "return")
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
    default. A forked child opens an ONNX bundle again at its first use; a GGUF bundle must be loaded in the child.
    Raises BundleError when the bundle is missing, damaged or newer than this edge-prm, MissingExtraError when its
    engine is not installed, InputError for a bad option.
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
        self._judge = DiscriminativeJudge(self._encoder, self.model, bundle.manifest.head.default_aggregate)
        self.model.spare = _weak(self.forget)

    @property
    def manifest(self) -> Manifest:
        return self._bundle.manifest

    def __repr__(self) -> str:
        """What it is, in a line: folder, checkpoint, recipe, engine, head."""
        manifest = self.manifest
        return (
            f"<PRM {str(self.folder)!r}: {manifest.source.name}, {manifest.recipe.name} for {manifest.backend}, "
            f"{manifest.head.kind} head, context of {manifest.context_length} tokens>"
        )

    def score(
        self,
        prompt: str | Trajectory,
        steps: Steps | None = None,
        *,
        aggregate: str | None = None,
        split: str = "auto",
    ) -> Score:
        """Score one trajectory: a prompt, and its steps as a list or as one completion that `split` divides.

        A Trajectory may take the place of both. `split`: `auto` (blank lines, or the bundle's own separator where the
        completion holds it), `blank`, `lines`, or a regular expression that matches separators. `aggregate`: last,
        mean, min, prod or reasonflux; the bundle's own by default. What two calls in a row have in common at the start
        is computed once. Raises InputError, ContextLengthError or BackendError.
        """
        name = self._aggregate(aggregate)
        trajectory = self._trajectory(prompt, steps, split)
        encoded = self._encoder.encode(trajectory)
        with self._scorer() as scorer:
            before = scorer.computed
            rewards = scorer.rewards(encoded)
            return made_score(trajectory, encoded, rewards, name, scorer.computed - before)

    @overload
    def score_many(
        self,
        trajectories: Iterable[Trajectory | tuple[str, Steps]],
        *,
        aggregate: str | None = None,
        split: str = "auto",
        on_error: Literal["raise"] = "raise",
    ) -> Iterator[Score]: ...

    @overload
    def score_many(
        self,
        trajectories: Iterable[Trajectory | tuple[str, Steps]],
        *,
        aggregate: str | None = None,
        split: str = "auto",
        on_error: str,
    ) -> Iterator[Score | EdgePRMError]: ...

    def score_many(
        self,
        trajectories: Iterable[Trajectory | tuple[str, Steps]],
        *,
        aggregate: str | None = None,
        split: str = "auto",
        on_error: str = "raise",
    ) -> Iterator[Score] | Iterator[Score | EdgePRMError]:
        """Score trajectories one after the other, in constant memory: each is read when its score is asked for.

        An item is a Trajectory or a pair of prompt and steps. Those that follow each other with the same prompt (or
        any other common beginning) share its computation. `on_error`: `raise` ends the iteration at the first item that
        cannot be scored; `return` yields the error in place of its Score and goes on with the next item.
        """
        splitter(split)
        if on_error not in ON_ERROR:
            raise InputError(f"on_error is {on_error!r}; choose one of {', '.join(ON_ERROR)}")
        return self._scores(trajectories, self._aggregate(aggregate), split, on_error)

    def _scores(
        self, trajectories: Iterable[Trajectory | tuple[str, Steps]], name: str, split: str, on_error: str
    ) -> Iterator[Score | EdgePRMError]:
        scorer = self._judge.start()
        try:
            for index, item in enumerate(trajectories):
                try:
                    trajectory = self._item(item, index, split)
                    encoded = self._encoder.encode(trajectory)
                    before = scorer.computed
                    rewards = scorer.rewards(encoded)
                except (InputError, BackendError) as error:
                    if on_error == "raise":
                        raise
                    yield error
                    continue
                yield made_score(trajectory, encoded, rewards, name, scorer.computed - before)
        finally:
            scorer.close()

    def _item(self, item: object, index: int, split: str) -> Trajectory:
        if isinstance(item, Trajectory):
            return item
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(
                f"item {index} is {type(item).__name__} ({shown(item)}); give a Trajectory, or (prompt, steps)"
            )
        return self._trajectory(item[0], item[1], split)

    def _trajectory(self, prompt: str | Trajectory, steps: object, split: str) -> Trajectory:
        if isinstance(prompt, Trajectory):
            if steps is not None:
                raise InputError("a Trajectory holds its steps; give no others with it")
            return prompt
        if steps is None:
            raise InputError("steps are missing; give a list of strings, the completion as one string, or a Trajectory")
        return Trajectory.of(prompt, steps, split=split, separator=self.separator)  # type: ignore[arg-type]

    @property
    def separator(self) -> str | None:
        """The text that closes a step in this bundle's format, where a completion may hold it; None elsewhere."""
        return self.manifest.input.separator_text

    def special_at_end(self, text: str) -> str | None:
        """The end-of-text token that a generator left at the end of a text, such as `<|im_end|>`; None without one."""
        return self._encoder.special_at_end(text)

    def session(self, prompt: str) -> Session:
        """Open a session for a trajectory that is still being written; use it in a `with` block or close it."""
        check_prompt(prompt)
        return Session(self._judge.start(), self._encoder, prompt, self._aggregate(None))

    def rank(
        self,
        prompt: str,
        candidates: Sequence[Steps | Trajectory],
        *,
        aggregate: str | None = None,
        split: str = "auto",
        early_stop: bool = False,
        threshold: float | None = None,
    ) -> Ranking:
        """Score candidates for one prompt; the prompt is computed once, each candidate costs its own tokens only.

        A candidate is a list of steps, a completion that `split` divides, or a Trajectory with this prompt. One that
        cannot be scored is None in the Ranking, with its error; the others are ranked. `early_stop`: give a candidate
        up as soon as it cannot win any more; possible under the aggregates that a step can only lower (min, prod).
        `threshold`: give a candidate up at its first step below it, under any aggregate.

        Raises InputError for a bad prompt or option, and for candidates that are no list.
        """
        name = self._aggregate(aggregate)
        splitter(split)
        if early_stop:
            check_early_stop(name)
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold!r}; rewards lie between 0 and 1")
        check_prompt(prompt)
        tried = [self._encode_candidate(prompt, steps, split, i) for i, steps in enumerate(_candidates(candidates))]
        scored: list[Score | None] = []
        errors: dict[int, EdgePRMError] = {}
        stopped: list[int] = []
        best: int | None = None
        with self._scorer() as scorer:
            before = scorer.computed
            for index, candidate in enumerate(tried):
                if isinstance(candidate, InputError):
                    errors[index] = candidate
                    scored.append(None)
                    continue
                trajectory, encoded = candidate
                leader = None if best is None else scored[best]
                to_beat = leader.score if early_stop and leader is not None else None
                started = scorer.computed
                try:
                    read, given_up = _read(scorer, encoded, name, to_beat, threshold)
                except BackendError as error:
                    errors[index] = error
                    scored.append(None)
                    continue
                scored.append(made_score(trajectory, encoded, read, name, scorer.computed - started))
                if given_up:
                    stopped.append(index)
                elif leader is None or scored[index].score > leader.score:  # type: ignore[union-attr]
                    best = index
            if not any(scored) and any(isinstance(error, BackendError) for error in errors.values()):
                raise next(error for error in errors.values() if isinstance(error, BackendError))
            return Ranking(best, tuple(scored), errors, tuple(stopped), scorer.computed - before)

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
        return check_aggregate(name or self._judge.default_aggregate)

    def _encode_candidate(
        self, prompt: str, steps: Steps | Trajectory, split: str, index: int
    ) -> tuple[Trajectory, Encoded] | InputError:
        """A candidate's trajectory and tokens, or why it has none."""
        place = f"candidate {index}"
        try:
            if isinstance(steps, InputError):  # a candidate that the reader of rows could not read
                raise steps
            if isinstance(steps, Trajectory):
                if steps.prompt != prompt:
                    raise InputError("its prompt is not the prompt of this ranking")
                return steps, self._encoder.encode(steps)
            trajectory = self._trajectory(prompt, steps, split)
            return trajectory, self._encoder.encode(trajectory)
        except ContextLengthError as error:
            return ContextLengthError(error.tokens, error.context_length, place)
        except InputError as error:
            return InputError(f"{place}: {error}")

    @contextmanager
    def _scorer(self) -> Iterator[PrefixScorer]:
        """Lend the idle sequence, with the last text still in it, or a new one when another thread has it."""
        if os.getpid() != self._process:  # in a forked child the lock may be held by a thread that is not there
            self.model.start()  # an engine that cannot be used here says so
            self._process, self._lock, self._idle = os.getpid(), threading.Lock(), None
        with self._lock:
            scorer, self._idle = self._idle, None
        if scorer is None:
            scorer = self._judge.start()
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

    def forget(self) -> None:
        """Free the KV cache that is kept for the next call, which then computes its text from the start."""
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


def _candidates(candidates: object) -> list[Steps | Trajectory]:
    if hasattr(candidates, "tolist"):  # a numpy array of completions
        candidates = candidates.tolist()
    if isinstance(candidates, (str, bytes)) or not isinstance(candidates, Sequence) or not candidates:
        raise InputError("candidates must be a list with at least one completion (a string, or a list of steps)")
    return list(candidates)


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
