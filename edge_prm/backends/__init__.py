"""Engines. Token ids go in, rewards at read positions come out; no text and no tokenizer below this line.

A new engine is one module with a `load_model(bundle, options)` that returns a Model, one row of
`edge_prm.recipe.ENGINES`, and one row in the contract test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_prm.arrays import Float32
from edge_prm.backends.options import DEVICES as DEVICES
from edge_prm.backends.options import EngineOptions as EngineOptions
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, InputError
from edge_prm.recipe import ENGINES, Recipe

_ON_GPU = {"int8": ("--int8", "w8a16"), "int4": ("--int4", "w4a16")}
"""Recipe for CPUs -> option of an export with `--device cuda`, and the recipe that this gives."""


class Backend(Protocol):
    """One token sequence and its KV cache. Not to be shared by threads; every thread starts its own."""

    @property
    def offset(self) -> int:
        """Tokens that the cache holds."""

    @property
    def computed(self) -> int:
        """Tokens run through the model since the start, those run a second time included."""

    def extend(self, ids: npt.NDArray[np.int64], read_at: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append `ids`, int64 `[tokens]`, and return the rewards at `read_at` (ascending indices into `ids`).

        Returns float32 `[len(read_at)]`, the same bits in whatever pieces a sequence is extended (llama.cpp: the same
        within the recipe's incremental tolerance). BackendError when the engine fails; the cache then holds what it
        held before, or a part of `ids` more. An exception that a signal raises in the main thread ends the run.
        """

    def trim(self, to: int) -> None:
        """Forget all but the first `to` tokens."""

    def branch(self) -> Backend:
        """Return a second sequence that begins with what this one holds."""

    def close(self) -> None:
        """Free the cache."""


class Batches(Protocol):
    """Scores several texts in one run. Safe to be called from several threads."""

    limit: int
    """The most tokens of a run: texts times the longest of them."""

    def rewards(self, texts: Sequence[npt.NDArray[np.int64]], read_at: Sequence[Sequence[int]]) -> list[Float32]:
        """Return the rewards of each text, float32 `[len(read_at[i])]`, within the recipe's incremental tolerance of
        those of one text at a time. BackendError when the engine fails."""


class Model(Protocol):
    """Loaded weights, shared by any number of sequences and threads, of the process that loaded them.

    A model that nobody references any more frees its weights.
    """

    spare: Callable[[], None] | None
    """Set by PRM, and called when no other sequence can be started: a holder of one that it does not need closes it.
    An engine without such a limit never calls it."""

    batches: Batches | None
    """Several texts in one run, where the device profits from it; None where it does not, or the engine cannot."""

    def start(self) -> Backend:
        """Return an empty sequence. BackendError in a forked child, or when the bundle was overwritten since."""

    def close(self) -> None:
        """Free the weights."""


def load_model(bundle: Bundle, options: EngineOptions = EngineOptions()) -> Model:  # noqa: B008 - frozen
    """Load a bundle's weights with its engine.

    InputError for an engine that this version does not know, for a bad option, and for a device that the bundle's
    recipe does not run on; BackendError when the engine refuses the weights; MissingExtraError when it is not
    installed.
    """
    recipe = bundle.manifest.recipe
    if recipe.engine not in ENGINES:
        raise InputError(
            f"{bundle.folder} was exported for engine {recipe.engine!r}, and this version has {', '.join(ENGINES)}; "
            "update edge-prm"
        )
    options = options.checked()
    check_device(bundle, options)
    model: Model = importlib.import_module(ENGINES[recipe.engine].module).load_model(bundle, options)
    if options.batch_tokens and model.batches is None:
        model.close()
        raise InputError(f"{bundle.folder} is a bundle that runs one text at a time; leave batch_tokens out")
    return model


def check_device(bundle: Bundle, options: EngineOptions) -> None:
    """InputError for a device or provider that the bundle's recipe does not run on; it names an export that does."""
    folder, recipe = bundle.folder, bundle.manifest.recipe
    if options.provider is not None and recipe.engine == "gguf":
        raise InputError(f"{folder} is a GGUF bundle, and providers are ONNX Runtime's; choose a device")
    on_cuda = (options.provider or "").lower() in ("cuda", "cudaexecutionprovider")
    on_gpu = options.device not in ("auto", "cpu") or options.gpu_layers or on_cuda
    if on_gpu and not {"gpu", "cuda"} & {*recipe.devices}:
        raise InputError(f"{folder} is a bundle of recipe {recipe.label}, which runs on the CPU; {_for_gpu(recipe)}")
    if options.gpu_layers and "gpu" not in recipe.devices:
        raise InputError(
            f"{folder} is an ONNX bundle, all of which is on one device; leave gpu_layers out, or export with --gguf"
        )


def _for_gpu(recipe: Recipe) -> str:
    """What runs on a GPU in place of a recipe for CPUs."""
    if recipe.engine != "onnx":
        return "choose device 'cpu', or leave it out"
    option, name = _ON_GPU.get(recipe.name, ("--fp16", "fp16"))
    return f"for a GPU export with --device cuda or --gguf ({option} --device cuda gives recipe {name})"


def chunks(
    ids: npt.NDArray[np.int64], read_at: Sequence[int], most: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Cut what is to be appended into runs of at most so many tokens, each with the positions to be read in it."""
    tokens, wanted = np.asarray(ids, dtype=np.int64), np.asarray(read_at, dtype=np.int64)
    if len(tokens) == 0:
        raise BackendError("there are no tokens to extend by")
    for start in range(0, len(tokens), most):
        chunk = tokens[start : start + most]
        yield chunk, wanted[(wanted >= start) & (wanted < start + len(chunk))] - start


def check_trim(to: int, held: int) -> None:
    """BackendError unless a cache of `held` tokens can be cut down to `to`."""
    if not 0 <= to <= held:
        raise BackendError(f"cannot trim to {to} tokens: the cache holds {held}")
