"""Round-to-nearest int8 weights with one scale per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

WEIGHT_MAX = 127
REDUCED_WEIGHT_MAX = 63
"""Seven bits: two u8 x s8 products then fit the 16 bits in which processors without VNNI add them."""


def quantize_rows(rows: Array, most: int = WEIGHT_MAX) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize each row of `[rows, columns]` to integers in -most..most times its own scale.

    Returns int8 `[rows, columns]` and float32 scales `[rows]`; a row of zeros has scale 1.
    """
    largest = np.abs(rows).max(axis=1)
    scales = (np.where(largest > 0, largest, most) / most).astype(np.float32)
    integers = np.rint(rows / scales[:, None].astype(rows.dtype))
    return np.clip(integers, -most, most).astype(np.int8), scales
