"""A checkpoint in full precision: transformers computes hidden states or logits, and torch applies the head.

The exporter describes the checkpoint (head, input format, context) and the command line hands the description in, so
that a reference reads the same text as a bundle. This module reads no file of a checkpoint.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import BackendError, ContextLengthError, InputError
from edge_prm.manifest import Manifest
from edge_prm.trajectory import Trajectory

_PLAIN = Trajectory.of("What is 2 + 3 * 4?", ["3 * 4 = 12", "2 + 12 = 14", "The answer is 14."])
"""Two tokenizers that disagree about this text disagree about every text."""


@dataclass(frozen=True)
class Described:
    """A checkpoint as the exporter describes it.

    `manifest`: of a bundle without weights. `layers`: the head's (weight `[out, in]`, bias `[out]`), with ReLU between
    them; none for a token pair, whose token ids `pair` are (bad, good). `load(dtype, device)` returns a torch module
    with `last_hidden_state`, or `logits` for a token pair. `disagreement(trajectory, ids)` returns how `ids` differ
    from those of transformers' own tokenizer, "" where they are equal; `tokenizer` is the name of that tokenizer.
    """

    manifest: Manifest
    tokenizer_file: Path
    layers: tuple[tuple[AnyFloat, AnyFloat], ...]
    pair: tuple[int, ...]
    load: Callable[[str, str], Any]
    disagreement: Callable[[Trajectory, Sequence[int]], str]
    tokenizer: str


class TorchPRM:
    """Rewards in torch; `dtype` is bf16 or fp32, `device` cpu or cuda.

    Raises CheckpointError when the checkpoint cannot be loaded complete; InputError for a device that does not exist,
    and before the weights are loaded where transformers' tokenizer disagrees about plain text.
    """

    def __init__(self, described: Described, dtype: str, device: str = "cpu", threads: int | None = None) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, and torch sees no CUDA device here; leave --device out for the CPU")
        if threads:
            torch.set_num_threads(threads)
        self._torch: Any = torch
        self._device = device
        self._described = described
        self._encoder = Encoder(described.tokenizer_file, described.manifest)
        with contextlib.suppress(ContextLengthError):
            if reason := described.disagreement(_PLAIN, self._encoder.encode(_PLAIN).ids.tolist()):
                raise InputError(f"checkpoint {described.manifest.source.name}: {reason}")
        self._model = described.load(dtype, device)
        self._layers = [
            tuple(torch.tensor(np.asarray(part, dtype=np.float32), device=device) for part in layer)
            for layer in described.layers
        ]
        self._chooses_rows = "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def encode(self, trajectory: Trajectory) -> Encoded:
        """Token ids and read positions, those of a bundle; InputError where transformers' tokenizer disagrees, and
        ContextLengthError for a text that is too long."""
        encoded = self._encoder.encode(trajectory)
        if reason := self._described.disagreement(trajectory, encoded.ids.tolist()):
            raise InputError(reason)
        return encoded

    def rewards(self, batch: Sequence[Encoded]) -> list[list[float]]:
        """Rewards of each encoded text of a batch; shorter texts are padded on the right, after the last token.

        A reward may be NaN or infinite. BackendError when torch fails or has no memory for the batch.
        """
        torch = self._torch
        longest = max(len(text.ids) for text in batch)
        rows = [text.ids.tolist() for text in batch]
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows], device=self._device)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=self._device)
        try:
            with torch.inference_mode():
                return self._read(padded, mask, [list(text.read_at) for text in batch])
        except RuntimeError as error:  # also when memory runs out
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BackendError(
                f"torch failed on {len(batch)} texts of up to {longest} tokens on {self._device} ({reason}); "
                "a smaller --batch-size needs less memory"
            ) from error

    def _read(self, padded: Any, mask: Any, read_at: list[list[int]]) -> list[list[float]]:
        """Rewards at the read positions of each row, from logits or hidden states."""
        inputs = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
        if not self._described.pair:
            hidden = self._model(**inputs).last_hidden_state
            return [self._apply_head(row[places].float()) for row, places in zip(hidden, read_at, strict=True)]
        if not self._chooses_rows:
            logits = self._model(**inputs).logits
            return [self._probability(row[places].float()) for row, places in zip(logits, read_at, strict=True)]
        # Logits of all positions and the whole vocabulary would be gigabytes.
        kept = sorted({place for places in read_at for place in places})
        logits = self._model(**inputs, logits_to_keep=self._torch.tensor(kept, device=self._device)).logits
        at = {place: index for index, place in enumerate(kept)}
        return [
            self._probability(row[[at[place] for place in places]].float())
            for row, places in zip(logits, read_at, strict=True)
        ]

    def _probability(self, logits: Any) -> list[float]:
        """Softmax over the logits of the bad and the good token."""
        rewards: list[float] = logits[:, list(self._described.pair)].softmax(-1)[:, 1].tolist()
        return rewards

    def _apply_head(self, rows: Any) -> list[float]:
        """sigmoid(output) of a head with one output, else the probability of class 1 of two."""
        for index, (weight, bias) in enumerate(self._layers):
            rows = (rows.relu() if index else rows) @ weight.T + bias
        has_one_output = rows.shape[-1] == 1
        probability = rows.sigmoid()[:, 0] if has_one_output else rows.softmax(-1)[:, 1]
        rewards: list[float] = probability.tolist()
        return rewards
