"""The checkpoint's own arithmetic in numpy fp32, one layer at a time.

Written from the published formula (Qwen2: RMSNorm, rotary attention with shared keys, SwiGLU) and run on the weights as
they stand, unfolded and unrotated: golden rewards come from here. On the way it shows what goes into each linear layer,
which tells the quantizer what the weights are multiplied by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.head import Head
from edge_prm_export.checkpoint.files import Checkpoint

Array = npt.NDArray[np.floating[Any]]

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class LayerInputs:
    """Rows that went into a layer's linears, all texts behind each other, float32 `[tokens, in]`.

    `attention` and `feed_forward` are normed but not yet multiplied by the norm's weight.
    """

    attention: Array
    output: Array
    feed_forward: Array
    down: Array


class ReferenceRun:
    """Texts on their way through the model; weights are read layer by layer, so that one layer is in memory."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[npt.NDArray[np.int64]]) -> None:
        self._checkpoint = checkpoint
        self._spec = checkpoint.spec
        self._config = self._spec.shapes
        checkpoint.check_shape(EMBEDDING, checkpoint.config.vocabulary, checkpoint.config.hidden)
        self._bounds = np.cumsum([0, *(len(ids) for ids in texts)])
        rows = [checkpoint.rows(EMBEDDING, id_, id_ + 1) for ids in texts for id_ in ids.tolist()]
        self._state: Array = np.concatenate(rows)

    def run_layer(self, layer: int) -> LayerInputs:
        """Run all texts through the next layer."""
        config = self._config
        hidden, width, inner = config.hidden, config.heads * config.head_dim, config.intermediate
        shared = config.kv_heads * config.head_dim

        def read(name: str, *shape: int) -> Array:
            return self._checkpoint.tensor(f"model.layers.{layer}.{name}", *shape)

        normed = self._rms(self._state)
        weighted = normed * read("input_layernorm.weight", hidden)
        query, key, value = (
            weighted @ read(f"self_attn.{kind}_proj.weight", outputs, hidden).T
            + read(f"self_attn.{kind}_proj.bias", outputs)
            for kind, outputs in (("q", width), ("k", shared), ("v", shared))
        )
        spans = zip(self._bounds[:-1], self._bounds[1:], strict=True)
        attended = np.concatenate([self._attention(query[a:b], key[a:b], value[a:b]) for a, b in spans])
        self._state = self._state + attended @ read("self_attn.o_proj.weight", hidden, width).T
        normed_again = self._rms(self._state)
        weighted = normed_again * read("post_attention_layernorm.weight", hidden)
        gated = weighted @ read("mlp.gate_proj.weight", inner, hidden).T
        gated = gated * _sigmoid(gated) * (weighted @ read("mlp.up_proj.weight", inner, hidden).T)
        self._state = self._state + gated @ read("mlp.down_proj.weight", hidden, inner).T
        return LayerInputs(normed, attended, normed_again, gated)

    def rewards(self, head: Head, text: int, read_at: Sequence[int]) -> list[float]:
        """Rewards of one text at its read positions, behind the last layer."""
        rows = self._state[self._bounds[text] + np.array(read_at)]
        hidden = self._rms(rows) * self._checkpoint.tensor("model.norm.weight", self._config.hidden)
        return head.apply(hidden).tolist()

    def _rms(self, rows: Array) -> Array:
        return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.float32(self._spec.eps))

    def _attention(self, query: Array, key: Array, value: Array) -> Array:
        """Causal attention; each key and value head serves heads / kv_heads query heads."""
        config = self._config
        length = len(query)
        shared = config.heads // config.kv_heads
        queries = self._rotary(query.reshape(length, config.heads, config.head_dim)).transpose(1, 0, 2)
        keys = self._rotary(key.reshape(length, config.kv_heads, config.head_dim)).repeat(shared, axis=1)
        values = value.reshape(length, config.kv_heads, config.head_dim).repeat(shared, axis=1).transpose(1, 0, 2)
        scores = queries @ keys.transpose(1, 2, 0) / np.float32(np.sqrt(config.head_dim))
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ values).transpose(1, 0, 2).reshape(length, -1)

    def _rotary(self, rows: Array) -> Array:
        """Rotate each pair (x[i], x[i + d/2]) by position * theta**(-2i/d) (RoFormer, arxiv.org/abs/2104.09864)."""
        length, _, width = rows.shape
        angles = np.arange(length)[:, None] * self._spec.rope.theta ** (-np.arange(0, width, 2) / width)
        cos, sin = np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]
        left, right = rows[..., : width // 2], rows[..., width // 2 :]
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _sigmoid(values: Array) -> Array:
    with np.errstate(over="ignore"):  # where exp is infinite, the outcome is the 0 that it should be
        return np.asarray(1 / (1 + np.exp(-values)))
