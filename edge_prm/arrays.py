"""Names for numpy arrays by dtype. Shapes are in the docstrings, as `[rows, columns]`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
AnyFloat = npt.NDArray[np.floating[Any]]
"""float32 or float64: what a function takes that computes in either."""
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
