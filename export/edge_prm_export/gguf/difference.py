"""How far a GGUF bundle is from full precision, over every token of some texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_prm.arrays import Float64
from edge_prm.backends.gguf.model import GgufModel
from edge_prm.encode import Encoded
from edge_prm.head import Head
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.progress import Progress

_SMALLEST = 1e-4  # rewards that are rounded to 0 or 1 count as almost so


class Difference(NamedTuple):
    """`mean`: mean absolute difference of rewards without the shift. `shift`: mean difference of logits.

    Quantization shifts a head's output a little, the same way in all texts; a bias can take that back.
    """

    mean: float
    shift: float


def measure(model: GgufModel, run: ReferenceRun, head: Head, texts: list[Encoded], progress: Progress) -> Difference:
    """Compare the rewards of the first texts of a reference run that is after its last layer."""
    measured, expected = [], []
    with progress("comparing with full precision", len(texts)) as advance:
        for index, text in enumerate(texts):
            everywhere = range(len(text.ids))
            sequence = model.start()
            measured.append(sequence.extend(text.ids, everywhere).astype(np.float64))
            expected.append(np.array(run.rewards(head, index, everywhere), dtype=np.float64))
            sequence.close()
            advance(1)
    logits, exact = _logits(np.concatenate(measured)), _logits(np.concatenate(expected))
    shift = float((logits - exact).mean())
    return Difference(float(np.abs(1 / (1 + np.exp(shift - logits)) - 1 / (1 + np.exp(-exact))).mean()), shift)


def _logits(rewards: Float64) -> Float64:
    rewards = rewards.clip(_SMALLEST, 1 - _SMALLEST)
    return np.log(rewards / (1 - rewards))
