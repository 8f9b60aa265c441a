"""The values that a quantized type can store for a weight."""

from __future__ import annotations

from dataclasses import dataclass

from edge_prm.arrays import Float32


@dataclass(frozen=True)
class Grid:
    """A stored weight is scale * q + minimum with an integer q from 0 to `q_max`.

    `scales` and `minimums` float32 `[in / group_size, out]`: each group of `group_size` input channels has its own, for
    each output.
    """

    scales: Float32
    minimums: Float32
    group_size: int
    q_max: int
