"""The arithmetic of a decoder in numpy fp32, and its derivatives: what rows become, and what a derivative becomes.

A function that ends in `_back` takes the derivative with respect to an output, and returns it with respect to an input.
"""

from __future__ import annotations

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.decoder.layers import Linear

_ROWS = 16


def product(rows: AnyFloat, linear: Linear) -> AnyFloat:
    """rows @ weight.T + bias, `[tokens, out]`."""
    result = rows @ linear.weight().T
    bias = linear.bias()
    return result if bias is None else result + bias


def rms(rows: AnyFloat, eps: float) -> AnyFloat:
    """RMSNorm without weights, of the last axis."""
    return rows / _size(rows, eps)


def rms_back(rows: AnyFloat, eps: float, derivative: AnyFloat) -> AnyFloat:
    """The derivative with respect to `rows`, given that of rms(rows)."""
    size = _size(rows, eps)
    normed = rows / size
    return (derivative - normed * (derivative * normed).mean(axis=-1, keepdims=True)) / size


def sigmoid(values: AnyFloat) -> AnyFloat:
    """1 / (1 + exp(-values))."""
    with np.errstate(over="ignore"):  # where exp is infinite, the outcome is the 0 that it should be
        return np.asarray(1 / (1 + np.exp(-values)))


def swiglu(gate: AnyFloat, up: AnyFloat) -> AnyFloat:
    """silu(gate) * up; a few rows at a time, which stay in the cache."""
    result = np.empty_like(gate)
    for start in range(0, len(gate), _ROWS):
        rows = slice(start, start + _ROWS)
        np.multiply(gate[rows] * sigmoid(gate[rows]), up[rows], out=result[rows])
    return result


def swiglu_back(gate: AnyFloat, up: AnyFloat, derivative: AnyFloat) -> tuple[AnyFloat, AnyFloat]:
    """The derivatives with respect to `gate` and `up`, given that of swiglu(gate, up)."""
    open_ = sigmoid(gate)
    silu = gate * open_
    return derivative * up * (open_ + silu * (1 - open_)), derivative * silu


def _size(rows: AnyFloat, eps: float) -> AnyFloat:
    return np.asarray(np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.float32(eps)))
