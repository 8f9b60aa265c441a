"""The front door: load a bundle, then score, rank, or open a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, overload

from edge_prm.aggregate import check_aggregate
from edge_prm.backends import EngineOptions, Model, load_model
from edge_prm.bundle import Bundle, open_bundle
from edge_prm.encode import TOKENIZER_NAME, Encoded, Encoder
from edge_prm.errors import ContextLengthError, EdgePRMError, InputError
from edge_prm.idle import IdleScorer, weak
from edge_prm.judges import Judge
from edge_prm.judges.discriminative import DiscriminativeJudge
from edge_prm.manifest import Manifest
from edge_prm.many import BatchScorer, profits, raising, scores_in_batches, scores_in_turn
from edge_prm.ranking import Candidate, RankOptions, listed, rank_candidates
from edge_prm.score import Ranking, Score, made_score
from edge_prm.session import Session
from edge_prm.split import shown, splitter
from edge_prm.trajectory import Trajectory, check_prompt

Steps = str | Sequence[str]

ON_ERROR = ("raise", "return")


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    provider: str | None = None,
    batch_tokens: int | None = None,
    engine_options: Mapping[str, Any] | None = None,
) -> PRM:
    """Load a bundle folder written by `edge-prm export`.

    `threads`: threads of the engine, by default one per core that this process may use. `device`: `cpu`; `cuda`, or
    `cuda:1` for the second card (ONNX bundles exported with `--device cuda`, and GGUF bundles where llama-cpp-python
    was built for a GPU); `gpu`, the GPU that the bundle's engine has; or `auto`, the GPU where bundle and engine can
    use one. `gpu_layers`: layers of a GGUF bundle that the GPU holds, all by default. `provider`: an execution provider
    of ONNX Runtime in place of the device: `cuda`, `directml`, `coreml`, `openvino`, `webgpu`, or ONNX Runtime's own
    name. `batch_tokens`: the most tokens of several texts in one run, 0 for one text at a time (the default on
    a CPU). `engine_options`: the engine's own options by name, passed through unchanged (see EngineOptions).

    Takes about as long as reading the weights from disk, and memory for them. A forked child opens an ONNX bundle again
    at its first use; a GGUF bundle, or one on a GPU, must be loaded in the child. Raises BundleError when the bundle is
    missing, damaged or newer than this edge-prm, MissingExtraError when its engine is not installed, InputError for a
    bad option or a device that the bundle does not run on, BackendError for a device that does not work. Warns with a
    SlowDeviceWarning when `auto` runs a bundle for GPUs on the CPU.
    """
    options = EngineOptions(threads, device, gpu_layers, engine_options or {}, provider, batch_tokens)
    return PRM(open_bundle(path), options)


class PRM:
    """A process reward model. Safe to use from several threads; scores are the same bits in whatever order and pieces
    they are computed.

    `model`: an engine's loaded weights in place of those that the bundle's own engine would load with `options`; the
    PRM closes it. So a test or another engine needs no more than the four members of `edge_prm.backends.Backend`.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        *,
        model: Model | None = None,
    ) -> None:
        self._bundle = bundle
        self.folder = bundle.folder
        self.options = options
        pool = ThreadPoolExecutor(1)  # tokenizer and weights take their time on a core each
        load: Callable[[], Model] = (lambda: load_model(bundle, options)) if model is None else (lambda: model)
        loading = pool.submit(load)
        try:
            self._encoder = Encoder(bundle.folder / TOKENIZER_NAME, bundle.manifest)
            self.model = loading.result()
        except BaseException:
            loading.add_done_callback(_close)  # now or, after an interrupt, when it is loaded
            raise
        finally:
            pool.shutdown(wait=False)  # an interrupt goes through at once
        self._judge: Judge = DiscriminativeJudge(self._encoder, self.model, bundle.manifest.head.default_aggregate)
        self._idle = IdleScorer(self._judge)
        self.model.spare = weak(self.forget)

    @property
    def manifest(self) -> Manifest:
        """What the bundle is, as data."""
        return self._bundle.manifest

    @property
    def device(self) -> str:
        """Where the model runs: `cpu`, `cuda:0`, `gpu` (all cards of llama.cpp), or an execution provider's name.

        `cpu` for an engine of yours that has no `device`.
        """
        return str(getattr(self.model, "device", "cpu"))

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
        encoded = self._judge.encode(trajectory)
        with self._idle.lend() as scorer:
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
        """Score trajectories in order, in constant memory. An item is read when its score is needed, on a GPU ahead.

        An item is a Trajectory or a pair of prompt and steps. Those that follow each other with the same prompt (or
        any other common beginning) share its computation. `on_error`: `raise` ends the iteration at the first item that
        cannot be scored; `return` yields the error in place of its Score and goes on with the next item.
        """
        splitter(split)
        if on_error not in ON_ERROR:
            raise InputError(f"on_error is {on_error!r}; choose one of {', '.join(ON_ERROR)}")
        name = self._aggregate(aggregate)
        items = (self._encoded(item, index, split) for index, item in enumerate(trajectories))
        scores = scores_in_batches if self._judge.batch_tokens else scores_in_turn
        found = scores(self._judge, items, name)
        return raising(found) if on_error == "raise" else found

    def _encoded(self, item: object, index: int, split: str) -> Candidate:
        try:
            trajectory = self._item(item, index, split)
            return trajectory, self._judge.encode(trajectory)
        except InputError as error:
            return error

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
        """Open a session for a trajectory that is still being written; use it in a `with` block or close it.

        It holds a KV cache of its own: 2 * layers * kv_heads * head_dim values for each token, of 4 bytes (ONNX) or 2
        (GGUF). Raises InputError for a bad prompt, BackendError when the engine has no sequence left.
        """
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
        prune_below: float | None = None,
    ) -> Ranking:
        """Score candidates for one prompt; the prompt is computed once, each candidate costs its own tokens only.

        A candidate is a list of steps, a completion that `split` divides, or a Trajectory with this prompt. One that
        cannot be scored is None in the Ranking, with its error; the others are ranked. `early_stop`: prune a candidate
        as soon as it cannot win any more; possible under the aggregates that a step can only lower (min, prod).
        `prune_below`: prune a candidate at its first step with a reward below it, under any aggregate.

        Raises InputError for a bad prompt or option, and for candidates that are no list; BackendError when the engine
        fails on every candidate.
        """
        options = RankOptions(self._aggregate(aggregate), early_stop, prune_below)
        splitter(split)
        check_prompt(prompt)
        tried = [self._encode_candidate(prompt, steps, split, i) for i, steps in enumerate(listed(candidates))]
        if not options.prunes and profits(self._judge, tried):
            return rank_candidates(BatchScorer(self._judge, tried), tried, options)
        with self._idle.lend() as scorer:
            return rank_candidates(scorer, tried, options)

    def encode(self, trajectory: Trajectory) -> Encoded:
        """The token ids of a trajectory, and where its steps are read; InputError or ContextLengthError."""
        return self._judge.encode(trajectory)

    def close(self) -> None:
        """Free the weights. Open sessions can no longer be pushed to."""
        self._idle.drop()
        self.model.close()

    def __enter__(self) -> PRM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _aggregate(self, name: str | None) -> str:
        return check_aggregate(name or self._judge.default_aggregate)

    def _encode_candidate(self, prompt: str, steps: Steps | Trajectory, split: str, index: int) -> Candidate:
        """A candidate's trajectory and tokens, or why it has none."""
        place = f"candidate {index}"
        try:
            if isinstance(steps, InputError):  # a candidate that the reader of rows could not read
                raise steps
            if isinstance(steps, Trajectory):
                if steps.prompt != prompt:
                    raise InputError("its prompt is not the prompt of this ranking")
                return steps, self._judge.encode(steps)
            trajectory = self._trajectory(prompt, steps, split)
            return trajectory, self._judge.encode(trajectory)
        except ContextLengthError as error:
            return ContextLengthError(error.tokens, error.context_length, place)
        except InputError as error:
            return InputError(f"{place}: {error}")

    def forget(self) -> None:
        """Free the KV cache that is kept for the next call, which then computes its text from the start."""
        self._idle.forget()


def _close(loading: Future[Model]) -> None:
    """Free a model whose PRM could not be made."""
    if loading.exception() is None:
        loading.result().close()
