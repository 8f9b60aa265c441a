"""Blocks of llama.cpp's K-quants: read their grids, and put other integers in.

A stored weight is scale * q + minimum, with q from 0 to q_max, and a scale and a minimum for each group of values.
llama.cpp's quantizer chooses scales and minimums well and rounds each weight by itself; `compensate` rounds on the same
grid in another way, so only the integers change.

Layout: block_q4_K and block_q6_K in ggml-common.h, dequantize_row_q4_K and dequantize_row_q6_K in ggml-quants.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_prm.arrays import Float32, UInt8
from edge_prm_export.quantize.grid import Grid

SUPER_BLOCK = 256
Q4_K, Q6_K = 12, 14
BYTES = {Q4_K: 144, Q6_K: 210}


def grid_of(data: UInt8, type_: int) -> Grid:
    """The grid of a stored weight, whose type is a key of BYTES; `data` uint8 `[out, bytes of a row]`."""
    blocks = data.reshape(len(data), -1, BYTES[type_])
    if type_ == Q4_K:
        d, low = _half(blocks[..., 0:2]), _half(blocks[..., 2:4])
        packed = blocks[..., 4:16]
        first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
        steps = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
        lows = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
        return Grid(_by_group(d[..., None] * steps), _by_group(-low[..., None] * lows), 32, 15)
    scales = blocks[..., 192:208].view(np.int8) * _half(blocks[..., 208:210])[..., None]
    return Grid(_by_group(scales), _by_group(-32 * scales), 16, 63)


def put_integers(data: UInt8, type_: int, integers: UInt8) -> None:
    """Write `integers`, uint8 `[out, in]`, into a stored weight; its scales stay."""
    blocks = data.reshape(len(data), -1, BYTES[type_])
    values = integers.reshape(len(data), -1, SUPER_BLOCK)
    if type_ == Q4_K:
        halves = values.reshape(*values.shape[:2], 4, 2, 32)  # 64 values in 32 bytes: a lower and an upper half
        blocks[..., 16:144] = (halves[..., 0, :] | (halves[..., 1, :] << 4)).reshape(*values.shape[:2], 128)
        return
    quarters = values.reshape(*values.shape[:2], 2, 4, 32)  # 128 values: four groups of 32 share bytes
    lower, upper = quarters & 15, quarters >> 4
    low = np.concatenate(
        [lower[..., 0, :] | (lower[..., 2, :] << 4), lower[..., 1, :] | (lower[..., 3, :] << 4)], axis=-1
    )
    high = upper[..., 0, :] | (upper[..., 1, :] << 2) | (upper[..., 2, :] << 4) | (upper[..., 3, :] << 6)
    blocks[..., 0:128] = low.reshape(*values.shape[:2], 128)
    blocks[..., 128:192] = high.reshape(*values.shape[:2], 64)


def _half(raw: UInt8) -> Float32:
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)


def _by_group(values: Any) -> Float32:
    """`[out, blocks, groups of a block]` -> float32 `[groups of a row, out]`."""
    return np.ascontiguousarray(values.reshape(len(values), -1).T, dtype=np.float32)
