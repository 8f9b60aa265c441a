"""Weights of 4 or 8 bits in blocks with a scale each, as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them.

A stored weight is scale * (q - zero point), with q from 0 to 2**bits - 1 and the zero point in the middle, 2**(bits-1).
Source: docs/ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_prm.arrays import AnyFloat, Float32, UInt8
from edge_prm_export.quantize.grid import Grid
from edge_prm_export.quantize.parallel import in_parallel

_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of the scale that reaches a block's largest weight: a smaller scale clips it, and rounds the others better."""
_STRIPE_VALUES = 1 << 17  # what is worked on at once stays in the cache


def zero_point(bits: int) -> int:
    """The integer that stands for zero."""
    return int(1 << (bits - 1))


def block_scales(weight: AnyFloat, bits: int, block: int, dtype: type[np.floating[Any]] = np.float32) -> Float32:
    """Return the scale of each block of a weight `[out, in]`, float32 `[out, ceil(in / block)]` of values of `dtype`.

    Of a few candidates, each block takes the one with the smallest squared error of rounding. A negative scale turns a
    block round, so that its largest value meets the longer side of the range.
    """
    stripe = max(1, _STRIPE_VALUES // weight.shape[1])

    def scales(start: int) -> Float32:
        blocks = _in_blocks(weight[start : start + stripe], block)
        return _best_scales(blocks, zero_point(bits), _FACTORS if bits < 8 else (1.0,), dtype)

    return np.concatenate(in_parallel(scales, range(0, len(weight), stripe)))


def _best_scales(blocks: AnyFloat, middle: int, factors: Sequence[float], dtype: type[np.floating[Any]]) -> Float32:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    best, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    for factor in factors:
        for reach in (-middle, middle - 1):
            scales = _stored(largest * np.float32(factor / reach), dtype)
            rest = _steps(blocks, scales, middle)
            rest *= scales[..., None]
            rest -= blocks
            error = np.einsum("...i,...i->...", rest, rest)
            better = error < least
            best, least = np.where(better, scales, best), np.where(better, error, least)
    return best


def grid_of(scales: Float32, bits: int, block: int) -> Grid:
    """The values that blocks with these scales can store."""
    by_block = np.ascontiguousarray(scales.T)
    return Grid(by_block, by_block * np.float32(-zero_point(bits)), block, (1 << bits) - 1)


def nearest(weight: AnyFloat, scales: Float32, bits: int, block: int) -> UInt8:
    """Integers uint8 `[out, in]`, each weight rounded by itself."""
    middle = zero_point(bits)
    steps = _steps(_in_blocks(weight, block), scales, middle) + middle
    return steps.reshape(len(weight), -1)[:, : weight.shape[1]].astype(np.uint8)


def packed(integers: UInt8, bits: int, block: int) -> UInt8:
    """Integers `[out, in]` as uint8 `[out, blocks, block * bits / 8]`; the first of two has the low bits of a byte."""
    blocks = _in_blocks(integers, block, zero_point(bits))
    return blocks if bits == 8 else blocks[..., 0::2] | (blocks[..., 1::2] << 4)


def block_for(width: int, wanted: int) -> int:
    """The largest block of at most `wanted` values, a power of two from 16 up, that divides a row; 16 if none does."""
    return next((size for size in (256, 128, 64, 32) if size <= wanted and width % size == 0), 16)


def _in_blocks(values: np.ndarray, block: int, fill: int = 0) -> np.ndarray:
    """`[out, in]` as `[out, blocks, block]`, the last block filled up."""
    missing = -values.shape[1] % block
    if missing:
        values = np.pad(values, ((0, 0), (0, missing)), constant_values=fill)
    return np.ascontiguousarray(values).reshape(len(values), -1, block)


def _steps(blocks: AnyFloat, scales: Float32, middle: int) -> AnyFloat:
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    steps = blocks * inverse[..., None]
    np.rint(steps, out=steps)
    return np.clip(steps, -middle, middle - 1, out=steps)


def _stored(scales: AnyFloat, dtype: type[np.floating[Any]]) -> Float32:
    """Scales as their stored type rounds them."""
    return scales.astype(dtype).astype(np.float32)
