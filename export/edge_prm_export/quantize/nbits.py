"""Weights of 4 or 8 bits in blocks with a scale each, as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them.

A stored weight is scale * (q - zero point), with q from 0 to 2**bits - 1.
Source: docs/ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.arrays import AnyFloat, Float32, UInt8
from edge_prm_export.quantize.feedback import OutputFeedback
from edge_prm_export.quantize.gptq import GPTQ, Rounding
from edge_prm_export.quantize.parallel import in_parallel

_SHARES = (1.0, 0.9, 0.8)
"""Shares of a block's reach: a smaller one clips the largest weights, and rounds the others better."""
_FITS = 2
"""How often the best scale is fitted to the integers that it gives: as good as many more shares, and faster."""
_STRIPE_VALUES = 1 << 17  # what is worked on at once stays in the cache
_STRIPE_OUTPUTS = 512

DType = type[np.floating[Any]]


@dataclass(frozen=True)
class Blocks:
    """How a weight is stored: integers of `bits`, a scale for each block of `block` values.

    Blocks of 4 bits have a zero point each: with sixteen values, a step less on an empty side counts. Those of 8 bits
    have theirs in the middle, which is not stored.
    """

    bits: int
    block: int

    @property
    def middle(self) -> int:
        """The zero point of blocks that store none."""
        return int(1 << (self.bits - 1))

    @property
    def largest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    @property
    def has_zero_points(self) -> bool:
        """Whether each block stores a zero point."""
        return self.bits < 8

    def fitting(self, width: int) -> Blocks:
        """The same with the largest block, a power of two up to this one, that divides a row of `width`; 16 if none."""
        fits = (size for size in (256, 128, 64, 32) if size <= self.block and width % size == 0)
        return Blocks(self.bits, next(fits, 16))


@dataclass(frozen=True)
class Scales:
    """Scale and zero point of each block of a weight `[out, in]`: float32 `[out, blocks]` each, zero points whole."""

    blocks: Blocks
    scales: Float32
    zero_points: Float32

    def of(self, outputs: slice) -> Scales:
        """Those of some outputs; writing to them writes to these."""
        return Scales(self.blocks, self.scales[outputs], self.zero_points[outputs])

    def values(self, integers: UInt8) -> Float32:
        """The weight that `integers` `[out, in]` stand for, float32 `[out, in]`."""
        steps = _in_blocks(integers, self.blocks.block) - self.zero_points[..., None]
        return (steps * self.scales[..., None]).reshape(len(integers), -1)[:, : integers.shape[1]]

    def nearest(self, weight: AnyFloat) -> UInt8:
        """Integers uint8 `[out, in]`, each weight rounded by itself."""
        steps = _steps(_in_blocks(weight, self.blocks.block), self.scales, self.zero_points, self.blocks.largest)
        return steps.reshape(len(weight), -1)[:, : weight.shape[1]].astype(np.uint8)

    def packed(self, integers: UInt8) -> UInt8:
        """Integers `[out, in]` as uint8 `[out, blocks, block * bits / 8]`; the first of two has a byte's low bits."""
        return _packed(_in_blocks(integers, self.blocks.block, self.blocks.middle), self.blocks.bits)

    def packed_zero_points(self) -> UInt8:
        """Zero points as uint8 `[out, bytes of a row]`."""
        points = self.zero_points.astype(np.uint8)
        missing = -points.shape[1] % (8 // self.blocks.bits)
        return _packed(np.pad(points, ((0, 0), (0, missing))), self.blocks.bits)


@dataclass(frozen=True, eq=False)
class Known:
    """What rounding a weight `[out, in]` can take into account.

    `dtype`: of the scales. `importance` `[in]`: by how much each input channel counts when a scale is chosen.
    `feedback`: what its outputs do to rewards.
    """

    dtype: DType = np.float32
    importance: AnyFloat | None = None
    feedback: OutputFeedback | None = None


def scales_of(weight: AnyFloat, blocks: Blocks, dtype: DType = np.float32) -> Scales:
    """Choose scale and zero point of each block of a weight `[out, in]`; scales are values of `dtype`.

    Of a few candidates, each block takes the one with the smallest squared error of rounding.
    """
    stripe = max(1, _STRIPE_VALUES // weight.shape[1])

    def chosen(start: int) -> tuple[AnyFloat, AnyFloat]:
        return _chosen(_in_blocks(weight[start : start + stripe], blocks.block), blocks, dtype, None)

    scales, points = zip(*in_parallel(chosen, range(0, len(weight), stripe)), strict=True)
    return Scales(blocks, np.concatenate(scales), np.concatenate(points))


def compensated(weight: AnyFloat, gptq: GPTQ, blocks: Blocks, known: Known) -> tuple[Scales, UInt8]:
    """Round a weight `[out, in]` by GPTQ; returns its scales, and its integers uint8 `[out, in]`.

    A block's scale is chosen when its turn comes: by then its weights hold the errors of the blocks before. `gptq` is
    aligned to blocks.
    """
    found = Scales(blocks, *np.empty((2, len(weight), -(-weight.shape[1] // blocks.block)), np.float32))
    integers = np.empty(weight.shape, np.uint8)
    feedback = known.feedback
    for outputs in feedback.turns() if feedback else (slice(0, len(weight)),):
        wanted = weight[outputs] + feedback.owed(outputs) if feedback else weight
        _compensate(np.asarray(wanted, np.float32), gptq, known, (found.of(outputs), integers[outputs]))
        if feedback:
            feedback.add(outputs, found.of(outputs).values(integers[outputs]) - weight[outputs])
    return found, integers


def _compensate(weight: Float32, gptq: GPTQ, known: Known, into: tuple[Scales, UInt8]) -> None:
    """Find scales and integers `[out, in]` of a weight; groups of channels and stripes of outputs are independent."""
    found, integers = into
    blocks = found.blocks
    pieces = [(group, start) for start in range(0, len(weight), _STRIPE_OUTPUTS) for group in gptq.groups]

    def piece(index: int) -> None:
        group, start = pieces[index]
        outputs = slice(start, min(start + _STRIPE_OUTPUTS, len(weight)))
        scales, points = found.scales[outputs], found.zero_points[outputs]

        def begin(channel: int, columns: Float32) -> None:
            counted = None if known.importance is None else known.importance[channel : channel + blocks.block]
            at = channel // blocks.block
            scales[:, at], points[:, at] = _chosen(np.ascontiguousarray(columns.T), blocks, known.dtype, counted)

        def round_row(channel: int, values: Float32, into: npt.NDArray[Any]) -> Float32:
            at = channel // blocks.block
            into[:] = steps = _steps(values[:, None], scales[:, at], points[:, at], blocks.largest)[:, 0]
            return np.asarray((steps - points[:, at]) * scales[:, at])

        columns = np.ascontiguousarray(weight[outputs, group].T)
        gptq.round_group(group, columns, integers[outputs, group].T, Rounding(round_row, blocks.block, begin))

    in_parallel(piece, range(len(pieces)))


def _chosen(values: AnyFloat, blocks: Blocks, dtype: DType, importance: AnyFloat | None) -> tuple[AnyFloat, AnyFloat]:
    """Scale and zero point of each block, `[...]` each, of `values` `[..., block]`."""
    choose = _with_zero_points if blocks.has_zero_points else _without_zero_points
    return choose(values, blocks, dtype, importance)


def _with_zero_points(
    values: AnyFloat, blocks: Blocks, dtype: DType, importance: AnyFloat | None
) -> tuple[AnyFloat, AnyFloat]:
    high, low = np.maximum(values.max(axis=-1), 0), np.minimum(values.min(axis=-1), 0)
    best = _Best(values, blocks.largest, importance)
    for share in _SHARES:
        scales = _stored((high - low) * np.float32(share / blocks.largest), dtype)
        points = np.divide(-low * np.float32(share), scales, out=np.zeros_like(scales), where=scales != 0)
        best.offer(scales, np.clip(np.rint(points), 0, blocks.largest))
    for _ in range(_FITS):
        best.offer(_stored(best.fitted(), dtype), best.points)
    return best.scales, best.points


def _without_zero_points(
    values: AnyFloat, blocks: Blocks, dtype: DType, importance: AnyFloat | None
) -> tuple[AnyFloat, AnyFloat]:
    """A negative scale turns a block round, so that its largest value meets the longer side of the range."""
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    best = _Best(values, blocks.largest, importance)
    for reach in (-blocks.middle, blocks.middle - 1):
        best.offer(_stored(largest / np.float32(reach), dtype), np.full_like(largest, blocks.middle))
    return best.scales, best.points


class _Best:
    """The candidate with the least error, block by block."""

    def __init__(self, values: AnyFloat, largest: int, importance: AnyFloat | None) -> None:
        self.scales = np.zeros(values.shape[:-1], np.float32)
        self.points = np.zeros_like(self.scales)
        self._least = np.full_like(self.scales, np.inf)
        self._values, self._largest = values, largest
        self._importance = None if importance is None else np.asarray(importance, np.float32)

    def offer(self, scales: AnyFloat, points: AnyFloat) -> None:
        rest = _steps(self._values, scales, points, self._largest)
        rest -= points[..., None]
        rest *= scales[..., None]
        rest -= self._values
        rest *= rest
        error = rest.sum(axis=-1) if self._importance is None else rest @ self._importance
        better = error < self._least
        self.scales, self.points = np.where(better, scales, self.scales), np.where(better, points, self.points)
        self._least = np.where(better, error, self._least)

    def fitted(self) -> AnyFloat:
        """The scales with the least squared error for the integers that the best ones give."""
        steps = _steps(self._values, self.scales, self.points, self._largest)
        steps -= self.points[..., None]
        counted = steps if self._importance is None else steps * self._importance
        size = np.einsum("...i,...i->...", counted, steps)
        product = np.einsum("...i,...i->...", counted, self._values)
        return np.divide(product, size, out=np.zeros_like(size), where=size > 0)


def _steps(values: AnyFloat, scales: AnyFloat, points: AnyFloat, largest: int) -> AnyFloat:
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    steps = values * inverse[..., None]
    np.rint(steps, out=steps)
    steps += points[..., None]
    return np.clip(steps, 0, largest, out=steps)


def _in_blocks(values: np.ndarray, block: int, fill: int = 0) -> np.ndarray:
    """`[out, in]` as `[out, blocks, block]`, the last block filled up."""
    missing = -values.shape[1] % block
    if missing:
        values = np.pad(values, ((0, 0), (0, missing)), constant_values=fill)
    return np.ascontiguousarray(values).reshape(len(values), -1, block)


def _packed(values: UInt8, bits: int) -> UInt8:
    return values if bits == 8 else values[..., 0::2] | (values[..., 1::2] << np.uint8(4))


def _stored(scales: AnyFloat, dtype: DType) -> Float32:
    """Scales as their stored type rounds them."""
    return scales.astype(dtype).astype(np.float32)
