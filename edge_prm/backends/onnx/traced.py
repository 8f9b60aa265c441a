"""ONNX Runtime on the CPU, with graphs that come from optimum.

Their attention joins past and new keys into a fresh tensor at every run, so the cache is a list of arrays that are
never written to: a branch shares them, and `trim` takes a view. Attention over another length is added up in another
order: rewards are close, not equal, in other pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends import EngineOptions, check_trim, chunks
from edge_prm.backends.onnx.session import MODEL_NAME, OnnxSession
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError

CHUNK_TOKENS = 256
_PAST, _PRESENT = "past_key_values.", "present."

Floats = npt.NDArray[np.float32]


def load_model(bundle: Bundle, options: EngineOptions) -> OptimumModel:
    """Load a graph; raises as `edge_prm.backends.load_model` does."""
    return OptimumModel(bundle, options)


class OptimumModel:
    """A graph of optimum's in ONNX Runtime. Safe to be called from several threads, which take turns."""

    def __init__(self, bundle: Bundle, options: EngineOptions = EngineOptions()) -> None:  # noqa: B008 - frozen
        self.batches = None
        path = bundle.folder / MODEL_NAME
        self._session = OnnxSession(bundle, options)
        session = self._session.engine
        shape = bundle.manifest.architecture
        self._inputs = {entry.name for entry in session.get_inputs()}
        self.cache_names = [f"{layer}.{kind}" for layer in range(shape.layers) for kind in ("key", "value")]
        outputs = {entry.name for entry in session.get_outputs()}
        missing = [
            name for name in self.cache_names if _PAST + name not in self._inputs or _PRESENT + name not in outputs
        ]
        if missing or "read_at" not in self._inputs or "rewards" not in outputs:
            raise BackendError(f"{path} is no graph of this backend: it has no {(missing or ['rewards'])[0]}")
        self.empty = np.empty((1, shape.kv_heads, 0, shape.head_dim), dtype=np.float32)

    @property
    def device(self) -> str:
        """The device in a word: `cpu`, or the name of an execution provider."""
        return self._session.placement.device

    def start(self) -> OptimumBackend:
        """Return an empty sequence; BackendError when a file of the weights was overwritten."""
        self._session.check()
        return OptimumBackend(self)

    def close(self) -> None:
        """Free the weights, after a run of another thread."""
        self._session.close()

    def run(
        self, ids: npt.NDArray[np.int64], read_at: npt.NDArray[np.int64], cache: list[Floats]
    ) -> tuple[Floats, list[Floats]]:
        """Run one chunk after the tokens of `cache`, float32 `[1, kv_heads, tokens, head_dim]` each; rewards and the
        longer cache."""
        past = cache[0].shape[2]
        feed: dict[str, Any] = {
            "input_ids": ids[None],
            "read_at": read_at,
            "attention_mask": np.ones((1, past + len(ids)), dtype=np.int64),
            "position_ids": np.arange(past, past + len(ids), dtype=np.int64)[None],
        }
        feed |= {_PAST + name: values for name, values in zip(self.cache_names, cache, strict=True)}
        feed = {name: value for name, value in feed.items() if name in self._inputs}
        names = ["rewards", *(_PRESENT + name for name in self.cache_names)]

        def call(session: Any, options: Any) -> list[Floats]:
            outputs: list[Floats] = session.run(names, feed, options)
            return outputs

        rewards, *present = self._session.run(call, past, len(ids))
        return rewards, present


class OptimumBackend:
    """One sequence on an OptimumModel; see `edge_prm.backends.Backend` for the contract."""

    def __init__(self, model: OptimumModel) -> None:
        self._model = model
        self._computed = 0
        self._cache = [model.empty] * len(model.cache_names)

    @property
    def offset(self) -> int:
        """Tokens that the cache holds."""
        return int(self._cache[0].shape[2])

    @property
    def computed(self) -> int:
        """Tokens run through the model since the start."""
        return self._computed

    def extend(self, ids: npt.NDArray[np.int64], read_at: Sequence[int]) -> Floats:
        """Append `ids`, int64 `[tokens]`; the rewards at `read_at`, float32 `[len(read_at)]`."""
        rewards = []
        for chunk, wanted in chunks(ids, read_at, CHUNK_TOKENS):
            read, self._cache = self._model.run(chunk, wanted, self._cache)
            rewards.append(read)
            self._computed += len(chunk)
        return np.concatenate(rewards)

    def trim(self, to: int) -> None:
        """Forget all but the first `to` tokens; no data is copied."""
        check_trim(to, self.offset)
        if to < self.offset:
            self._cache = [values[:, :, :to] for values in self._cache]

    def branch(self) -> OptimumBackend:
        """Return a second sequence that begins with what this one holds."""
        other = OptimumBackend(self._model)
        other._cache = list(self._cache)
        return other

    def close(self) -> None:
        """Free the cache."""
        self._cache = [self._model.empty] * len(self._model.cache_names)
