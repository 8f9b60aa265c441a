"""Causal attention of one text in numpy fp32, rotary embedding and norms of heads included, and its derivative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import DecoderSpec
from edge_prm_export.decoder.arithmetic import rms, rms_back
from edge_prm_export.decoder.layers import Norms
from edge_prm_export.decoder.rope import rope_tables


class QueryKeyValue(NamedTuple):
    """Rows of one text: `query` `[tokens, heads * head_dim]`, `key` and `value` `[tokens, kv_heads * head_dim]`."""

    query: AnyFloat
    key: AnyFloat
    value: AnyFloat


class Attention:
    """Attention of a decoder for texts of up to `positions` tokens."""

    def __init__(self, spec: DecoderSpec, positions: int) -> None:
        self._shapes = spec.shapes
        self._eps = spec.eps
        self._cos, self._sin = rope_tables(spec.rope, spec.shapes.head_dim, positions)
        self._scale = np.float32(1 / np.sqrt(spec.shapes.head_dim))

    def forward(self, rows: QueryKeyValue, norms: Norms) -> AnyFloat:
        """What attention gives, `[tokens, heads * head_dim]`; a key and value head serves several query heads."""
        *_, values, weights = self._weights(rows, norms)
        return _flat(weights @ values[:, None])

    def backward(self, rows: QueryKeyValue, norms: Norms, derivative: AnyFloat) -> QueryKeyValue:
        """The derivative with respect to `rows`, given that of `forward(rows, norms)`."""
        queries, keys, values, weights = self._weights(rows, norms)
        length = len(derivative)
        by_output = derivative.reshape(length, *queries.shape[:2], -1).transpose(1, 2, 0, 3)
        by_values = (weights.transpose(0, 1, 3, 2) @ by_output).sum(axis=1)
        by_weights = by_output @ values[:, None].transpose(0, 1, 3, 2)
        by_scores = weights * (by_weights - (by_weights * weights).sum(axis=-1, keepdims=True)) * self._scale
        by_queries = by_scores @ keys[:, None]
        by_keys = (by_scores.transpose(0, 1, 3, 2) @ queries).sum(axis=1)
        return QueryKeyValue(
            self._turned_back(self._heads(rows.query), norms.q, _by_token(by_queries.reshape(-1, *keys.shape[1:]))),
            self._turned_back(self._heads(rows.key), norms.k, _by_token(by_keys)),
            _by_token(by_values).reshape(length, -1),
        )

    def _weights(self, rows: QueryKeyValue, norms: Norms) -> tuple[AnyFloat, AnyFloat, AnyFloat, AnyFloat]:
        """Queries `[kv_heads, shared, tokens, head_dim]`, keys and values `[kv_heads, tokens, head_dim]`, all turned;
        and what each token gives each token before it, `[kv_heads, shared, tokens, tokens]`."""
        length = len(rows.query)
        keys = self._turned(self._heads(rows.key), norms.k).transpose(1, 0, 2)
        values = self._heads(rows.value).transpose(1, 0, 2)
        turned = self._turned(self._heads(rows.query), norms.q).transpose(1, 0, 2)
        queries = turned.reshape(len(keys), -1, *turned.shape[1:])
        scores = queries @ keys[:, None].transpose(0, 1, 3, 2) * self._scale
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return queries, keys, values, weights

    def _heads(self, rows: AnyFloat) -> AnyFloat:
        return rows.reshape(len(rows), -1, self._shapes.head_dim)

    def _turned(self, heads: AnyFloat, norm: AnyFloat | None) -> AnyFloat:
        """Queries or keys `[tokens, heads, head_dim]`, normed by head (qk_norm), then rotated by position.

        Each pair (x[i], x[i + d/2]) is rotated (RoFormer, arxiv.org/abs/2104.09864, in the halves of GPT-NeoX).
        """
        if norm is not None:
            heads = rms(heads, self._eps) * norm
        return _rotated(heads, self._cos[: len(heads), None], self._sin[: len(heads), None])

    def _turned_back(self, heads: AnyFloat, norm: AnyFloat | None, derivative: AnyFloat) -> AnyFloat:
        length = len(heads)
        result = _rotated(derivative, self._cos[:length, None], -self._sin[:length, None])
        if norm is not None:
            result = rms_back(heads, self._eps, result * norm)
        return result.reshape(length, -1)


def _rotated(heads: AnyFloat, cos: AnyFloat, sin: AnyFloat) -> AnyFloat:
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _by_token(by_head: AnyFloat) -> AnyFloat:
    """`[heads, tokens, head_dim]` as `[tokens, heads, head_dim]`."""
    return by_head.transpose(1, 0, 2)


def _flat(by_head: AnyFloat) -> AnyFloat:
    """`[kv_heads, shared, tokens, head_dim]` as `[tokens, heads * head_dim]`."""
    length = by_head.shape[2]
    return by_head.transpose(2, 0, 1, 3).reshape(length, -1)
