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
