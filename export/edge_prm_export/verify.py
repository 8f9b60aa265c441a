"""The checkpoint's own arithmetic in numpy fp32, and golden trajectories scored with it.

Written from the published formula (Qwen2: RMSNorm, rotary attention with shared keys, SwiGLU) and from the
checkpoint's weights as they stand, unfolded and unrotated: it shares nothing with the exporter but the file reader.
Weights are read layer by layer, so a 1.5B needs no more than its largest layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.encode import Encoded
from edge_prm_export.checkpoint import Checkpoint
from edge_prm_export.head import RewardHead

Array = npt.NDArray[np.floating[Any]]

GOLDEN_TRAJECTORIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "A farmer has 17 sheep and buys 5 more. He then sells 8. How many sheep does he have?",
        (
            "The farmer starts with 17 sheep and buys 5 more, so he has 17 + 5 = 22 sheep.",
            "He sells 8 of them: 22 - 8 = 14.",
            "The answer is 14.",
        ),
    ),
    (
        "What is (6 + 4) * 3 - 7?",
        ("6 + 4 = 10", "10 * 3 = 33", "33 - 7 = 26", "The answer is 26."),
    ),
    (
        "Solve for x: 2x + 3 = 11.",
        (
            "Subtract 3 from both sides: 2x = 8.",
            "Divide both sides by 2: x = 4.",
            "Check: 2·4 + 3 = 11 ✓, so x = 4.",
        ),
    ),
)
"""Ours, short and plain: arithmetic right and wrong, words, and characters outside ASCII."""


def golden_trajectories(context_length: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the golden trajectories; a model of a very short context gets shorter ones."""
    for prompt, steps in GOLDEN_TRAJECTORIES:
        yield prompt, (steps if context_length >= 512 else steps[:1])


def reference_rewards(
    checkpoint: Checkpoint, head: RewardHead, texts: Sequence[Encoded]
) -> Iterator[int | list[list[float]]]:
    """Score encoded texts in fp32. Yields the number of each layer when it is done, and the rewards at the end."""
    states: list[Array] = [_embedding(checkpoint, text.ids) for text in texts]
    for layer in range(checkpoint.config.layers):
        _run_layer(checkpoint, layer, states)
        yield layer
    norm = checkpoint.tensor("model.norm.weight", checkpoint.config.hidden)
    epsilon = checkpoint.config.rms_norm_eps
    yield [
        _apply_head(head, _rms_norm(state, norm, epsilon)[list(text.read_at)]).tolist()
        for state, text in zip(states, texts, strict=True)
    ]


def _embedding(checkpoint: Checkpoint, ids: npt.NDArray[np.int64]) -> Array:
    return np.concatenate([checkpoint.rows("model.embed_tokens.weight", id_, id_ + 1) for id_ in ids.tolist()])


def _run_layer(checkpoint: Checkpoint, layer: int, states: list[Array]) -> None:
    """Run one layer over all texts, in place; its weights are read once."""
    config = checkpoint.config
    prefix = f"model.layers.{layer}"

    def weight(name: str) -> Array:
        return checkpoint.tensor(f"{prefix}.{name}.weight")

    norm = weight("input_layernorm")
    qkv = []
    for kind in "qkv":
        matrix, bias = weight(f"self_attn.{kind}_proj"), checkpoint.tensor(f"{prefix}.self_attn.{kind}_proj.bias")
        qkv.append([_rms_norm(state, norm, config.rms_norm_eps) @ matrix.T + bias for state in states])
    output = weight("self_attn.o_proj")
    for index, (query, key, value) in enumerate(zip(*qkv, strict=True)):
        states[index] = states[index] + _attention(checkpoint, query, key, value) @ output.T
    norm = weight("post_attention_layernorm")
    gate, up, down = (weight(f"mlp.{kind}_proj") for kind in ("gate", "up", "down"))
    for index, state in enumerate(states):
        normed = _rms_norm(state, norm, config.rms_norm_eps)
        gated = normed @ gate.T
        states[index] = state + ((gated / (1 + np.exp(-gated))) * (normed @ up.T)) @ down.T


def _attention(checkpoint: Checkpoint, query: Array, key: Array, value: Array) -> Array:
    """Causal attention; each key and value head serves heads / kv_heads query heads."""
    config = checkpoint.config
    length = len(query)
    shared = config.heads // config.kv_heads
    queries = _rotary(query.reshape(length, config.heads, config.head_dim), config.rope_theta)
    keys = _rotary(key.reshape(length, config.kv_heads, config.head_dim), config.rope_theta).repeat(shared, axis=1)
    values = value.reshape(length, config.kv_heads, config.head_dim).repeat(shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", queries, keys) / np.float32(np.sqrt(config.head_dim))
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, values).reshape(length, -1)


def _rotary(rows: Array, theta: float) -> Array:
    """Rotate each pair (x[i], x[i + d/2]) by position * theta**(-2i/d) (RoFormer, arxiv.org/abs/2104.09864)."""
    length, _, width = rows.shape
    angles = np.arange(length)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]
    left, right = rows[..., : width // 2], rows[..., width // 2 :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _rms_norm(rows: Array, weight: Array, epsilon: float) -> Array:
    return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def _apply_head(head: RewardHead, rows: Array) -> Array:
    """sigmoid of one output, or softmax over two: class 1 is the reward."""
    for index, (weight, bias) in enumerate(head.layers):
        rows = (np.maximum(rows, 0) if index else rows) @ weight.T + bias
    logit = rows[:, 0] if head.kind == "sigmoid" else rows[:, 1] - rows[:, 0]
    return np.asarray(1 / (1 + np.exp(-logit)))
