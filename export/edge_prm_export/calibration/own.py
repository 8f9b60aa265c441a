"""Which of our own texts an ONNX recipe calibrates on."""

from __future__ import annotations

from edge_prm_export.calibration.long_texts import LONG
from edge_prm_export.calibration.more_texts import MORE
from edge_prm_export.calibration.texts import CALIBRATION


def own_texts(bits: float) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(problem, steps) of each text for weights of `bits`: none from 16 bits up, most below 8."""
    if bits >= 16:
        return ()
    return CALIBRATION if bits >= 8 else (*CALIBRATION, *MORE, *LONG)


def differentiated_texts(bits: float) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The texts whose rewards are differentiated, so that errors stay out of their way: below 8 bits, some short ones.

    A differentiated token costs three times as much as one that is only read.
    """
    return () if bits >= 8 else (*CALIBRATION, *MORE[::3])
