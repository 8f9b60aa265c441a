"""The checkpoint's own arithmetic in numpy fp32, one layer at a time.

Written from the published formulas (RMSNorm, rotary attention with shared keys, SwiGLU) and run on the weights as they
are in the checkpoint, without transforms: golden rewards come from here. It also records what enters each linear
layer, from which the quantizer learns the statistics of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.encode import Encoded
from edge_prm.head import Head
from edge_prm_export.decoder.layers import LayerInputs as LayerInputs
from edge_prm_export.decoder.layers import LayerWeights, Linear, Norms, read_layer
from edge_prm_export.decoder.names import EMBEDDING, FINAL_NORM, tensor_name, tensor_shape
from edge_prm_export.decoder.rope import rope_tables
from edge_prm_export.decoder.source import TensorSource


class ReferenceRun:
    """Texts on their way through the model. Weights are read tensor by tensor, so that one is in memory."""

    def __init__(self, source: TensorSource, texts: Sequence[Encoded]) -> None:
        self._source = source
        self._spec = source.spec
        self._shapes = source.spec.shapes
        name = tensor_name(EMBEDDING)
        source.check_shape(name, *tensor_shape(self._spec, EMBEDDING))
        lengths = [len(text.ids) for text in texts]
        self._bounds = np.cumsum([0, *lengths])
        self._cos, self._sin = rope_tables(self._spec.rope, self._shapes.head_dim, max(lengths, default=0))
        rows = [source.rows(name, id_, id_ + 1) for text in texts for id_ in text.ids.tolist()]
        self._state: AnyFloat = np.concatenate(rows)
        self._is_read = np.zeros(len(self._state), dtype=np.bool_)
        for text, start in zip(texts, self._bounds[:-1], strict=True):
            self._is_read[start + np.array(text.read_at, dtype=np.int64)] = True

    def run_layer(self, index: int) -> LayerInputs:
        """Run all texts through layer `index`, which must be the next one."""
        layer = read_layer(self._source, index)
        attention = self._rms(self._state)
        output = self._attention(attention * layer.norms.attention, layer)
        self._state = self._state + _product(output, layer.o)
        feed_forward = self._rms(self._state)
        weighted = feed_forward * layer.norms.feed_forward
        gated = _product(weighted, layer.gate)
        gated = gated * _sigmoid(gated) * _product(weighted, layer.up)
        self._state = self._state + _product(gated, layer.down)
        return LayerInputs(attention, output, feed_forward, gated, self._is_read)

    def rewards(self, head: Head, text: int, read_at: Sequence[int]) -> list[float]:
        """Rewards of one text at its read positions, after the last layer."""
        rows = self._state[self._bounds[text] + np.array(read_at)]
        norm = self._source.tensor(tensor_name(FINAL_NORM), *tensor_shape(self._spec, FINAL_NORM))
        return head.apply_to_all(self._rms(rows) * norm).tolist()

    def _rms(self, rows: AnyFloat) -> AnyFloat:
        return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.float32(self._spec.eps))

    def _attention(self, rows: AnyFloat, layer: LayerWeights) -> AnyFloat:
        """Causal attention within each text, `[tokens, heads * head_dim]`."""
        query, key, value = (_product(rows, linear) for linear in (layer.q, layer.k, layer.v))
        spans = list(zip(self._bounds[:-1], self._bounds[1:], strict=True))
        return np.concatenate([self._attend(query[a:b], key[a:b], value[a:b], layer.norms) for a, b in spans])

    def _attend(self, query: AnyFloat, key: AnyFloat, value: AnyFloat, norms: Norms) -> AnyFloat:
        """Attention of one text; each key and value head serves heads / kv_heads query heads."""
        shapes, length = self._shapes, len(query)
        shared = shapes.heads // shapes.kv_heads
        queries = self._turned(query.reshape(length, shapes.heads, shapes.head_dim), norms.q).transpose(1, 0, 2)
        keys = self._turned(key.reshape(length, shapes.kv_heads, shapes.head_dim), norms.k).repeat(shared, axis=1)
        values = value.reshape(length, shapes.kv_heads, shapes.head_dim).repeat(shared, axis=1).transpose(1, 0, 2)
        scores = queries @ keys.transpose(1, 2, 0) / np.float32(np.sqrt(shapes.head_dim))
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ values).transpose(1, 0, 2).reshape(length, -1)

    def _turned(self, heads: AnyFloat, norm: AnyFloat | None) -> AnyFloat:
        """Queries or keys `[tokens, heads, head_dim]`, normed by head (qk_norm), then rotated by position.

        Each pair (x[i], x[i + d/2]) is rotated (RoFormer, arxiv.org/abs/2104.09864, in the halves of GPT-NeoX).
        """
        if norm is not None:
            heads = self._rms(heads) * norm
        length, _, width = heads.shape
        cos, sin = self._cos[:length, None], self._sin[:length, None]
        first, second = heads[..., : width // 2], heads[..., width // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _product(rows: AnyFloat, linear: Linear) -> AnyFloat:
    product = rows @ linear.weight().T
    bias = linear.bias()
    return product if bias is None else product + bias


def _sigmoid(values: AnyFloat) -> AnyFloat:
    with np.errstate(over="ignore"):  # where exp is infinite, the outcome is the 0 that it should be
        return np.asarray(1 / (1 + np.exp(-values)))
