"""The values that a quantized type can store for a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """`scales` and `lows` float32 `[in / run, out]`: of each run of so many input channels, for each output."""

    scales: Floats
    lows: Floats
    run: int
    most: int
