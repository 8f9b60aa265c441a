"""Rounding errors of outputs make up for each other where rewards see them."""

from __future__ import annotations

import numpy as np
import pytest

from edge_prm_export.quantize.feedback import DAMPING, OutputFeedback
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.nbits import Blocks, Known, compensated

RNG = np.random.default_rng(3)
OUTPUTS, INPUTS = 96, 64
WEIGHT = RNG.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
ROWS = RNG.standard_normal((400, INPUTS)).astype(np.float32)
FEW = (RNG.standard_normal((300, 6)) @ RNG.standard_normal((6, OUTPUTS))).astype(np.float32)
"""Derivatives in 6 of 96 directions."""


def seen(weight: np.ndarray, derivatives: np.ndarray) -> float:
    """The mean square of what a weight's error does to rewards."""
    return float(((derivatives @ (weight - WEIGHT) @ ROWS.T) ** 2).mean())


def stored(feedback: OutputFeedback | None) -> np.ndarray:
    scales, integers = compensated(WEIGHT, GPTQ(ROWS, align=32), Blocks(4, 32), Known(feedback=feedback))
    return scales.values(integers)


def test_rewards_see_less_of_the_errors() -> None:
    plain, fed_back = stored(None), stored(OutputFeedback(FEW))
    assert seen(fed_back, FEW) < 0.3 * seen(plain, FEW)
    # and no output pays for it with an error that is out of proportion
    assert ((fed_back - WEIGHT) ** 2).mean() < 1.5 * ((plain - WEIGHT) ** 2).mean()


def test_what_is_owed_is_the_best_that_free_outputs_can_do() -> None:
    feedback = OutputFeedback(FEW, turns=2)
    first, second = feedback.turns()
    errors = RNG.standard_normal((first.stop, INPUTS)).astype(np.float32)
    feedback.add(first, errors)
    moments = FEW.T @ FEW / len(FEW)
    moments += DAMPING * np.trace(moments) / OUTPUTS * np.eye(OUTPUTS, dtype=np.float32)
    best = -np.linalg.solve(moments[second, second], moments[second, first] @ errors)
    assert np.allclose(feedback.owed(second), best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("outputs", [1, 5, 96])
def test_each_output_has_one_turn(outputs: int) -> None:
    turns = list(OutputFeedback(FEW[:, :outputs]).turns())
    assert [index for turn in turns for index in range(turn.start, turn.stop)] == list(range(outputs))


def test_without_derivatives_nothing_is_owed() -> None:
    feedback = OutputFeedback(np.zeros_like(FEW))
    assert np.array_equal(stored(feedback), stored(None))
