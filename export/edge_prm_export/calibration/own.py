"""Which of our own texts an ONNX recipe calibrates on."""

from __future__ import annotations

from edge_prm.recipe import Recipe
from edge_prm_export.calibration.golden import Texts
from edge_prm_export.calibration.long_texts import LONG
from edge_prm_export.calibration.more_texts import MORE
from edge_prm_export.calibration.texts import CALIBRATION


def own_texts(recipe: Recipe) -> Texts:
    """The texts that weights are rounded for: none in 16 bits and more.

    GPTQ's error on other texts falls with every text, and the time of an export grows. Where activations have 8 bits
    too, they err as much as the weights, and the first texts are enough.
    """
    if recipe.bits >= 16:
        return ()
    return (*CALIBRATION, *MORE, *LONG) if _weights_err_most(recipe) else CALIBRATION


def differentiated_texts(recipe: Recipe) -> Texts:
    """The texts whose rewards are differentiated, so that errors of weights stay out of their way: some short ones.

    A differentiated token costs three times as much as one that is only read.
    """
    return (*CALIBRATION, *MORE[::3]) if _weights_err_most(recipe) else ()


def _weights_err_most(recipe: Recipe) -> bool:
    return recipe.bits < 16 and recipe.activations != "uint8"
