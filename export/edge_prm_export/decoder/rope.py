"""Frequencies of rotary position embeddings: the same numbers for the reference run, ONNX tables and GGUF factors."""

from __future__ import annotations

import math

import numpy as np

from edge_prm.arrays import Float32, Float64
from edge_prm_export.checkpoint.config import Llama3Scaling, Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> Float64:
    """Radians per position by which each pair (x[i], x[i + head_dim/2]) of a head turns, `[head_dim / 2]`.

    theta**(-2i/d), RoFormer (arxiv.org/abs/2104.09864), divided by the scaling's factors where there are any.
    """
    plain: Float64 = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    factors = rope_factors(rope, head_dim)
    return plain if factors is None else plain / factors


def rope_factors(rope: Rope, head_dim: int) -> Float64 | None:
    """What the scaling divides each plain frequency by, `[head_dim / 2]`; None without scaling."""
    if rope.scaling is None:
        return None
    wavelengths = 2 * math.pi * rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
    return _llama3_factors(rope.scaling, wavelengths)


def rope_tables(rope: Rope, head_dim: int, positions: int) -> tuple[Float32, Float32]:
    """Cosines and sines of every angle, each `[positions, head_dim / 2]`."""
    angles = np.arange(positions)[:, None] * inverse_frequencies(rope, head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _llama3_factors(scaling: Llama3Scaling, wavelengths: Float64) -> Float64:
    """Llama 3.1: slow dimensions are stretched by `factor`, fast ones stay, those between are interpolated.

    A dimension is fast when it turns more than `high_freq_factor` times within the original context, and slow when it
    turns less than `low_freq_factor` times. Frequencies, not factors, are interpolated linearly in the turns.
    """
    turns = scaling.original_context / wavelengths
    fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = np.clip(fast, 0, 1)  # of the frequency that stays
    return np.asarray(1 / ((1 - share) / scaling.factor + share))
