"""Round-to-nearest int8 weights with one scale per row."""

from __future__ import annotations

import numpy as np

from edge_prm.arrays import AnyFloat, Float32, Int8

WEIGHT_MAX = 127
REDUCED_WEIGHT_MAX = 63
"""Seven bits: two u8 x s8 products then fit the 16 bits in which processors without VNNI add them."""


def quantize_rows(rows: AnyFloat, q_max: int = WEIGHT_MAX) -> tuple[Int8, Float32]:
    """Quantize each row of `[rows, columns]` to integers in -q_max..q_max times its own scale.

    Returns int8 `[rows, columns]` and float32 scales `[rows]`.
    """
    scales = row_scales(rows, q_max)
    integers = np.rint(rows / scales[:, None].astype(rows.dtype))
    return np.clip(integers, -q_max, q_max).astype(np.int8), scales


def row_scales(rows: AnyFloat, q_max: int) -> Float32:
    """Largest absolute value of each row divided by `q_max`, float32 `[rows]`; 1 for a row of zeros."""
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return (np.where(largest > 0, largest, q_max) / q_max).astype(np.float32)


def of_unit_size(inputs: AnyFloat) -> Float32:
    """Rows `[tokens, in]` divided by their root mean square: each counts by its direction, not by its size."""
    norms = np.sqrt(np.einsum("ti,ti->t", inputs, inputs) / np.float32(inputs.shape[1]))
    return np.asarray(inputs / np.maximum(norms, np.float32(1e-12))[:, None], dtype=np.float32)
