"""A Qwen2 checkpoint's weights as a graph wants them: norm weights folded into the linears behind them, and rotated.

With a rotation, the residual stream and each head's values are rotated (see rotate.py); without one, the weights are
those of the checkpoint with the norms folded in (or, for `folded=False`, left where they are). The final norm's weight
always goes into the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.decoder.reference import LayerInputs
from edge_prm_export.decoder.rotate import Rotation
from edge_prm_export.decoder.smooth import LayerScales

Array = npt.NDArray[np.floating[Any]]

EMBEDDING = "model.embed_tokens.weight"
EMBEDDING_BLOCK_ROWS = 8192


class DecoderWeights:
    """Weights `[out, in]` of one layer at a time, float32, read when they are asked for."""

    def __init__(
        self, checkpoint: Checkpoint, *, rotated: bool, folded: bool = True, scales: Sequence[LayerScales] | None = None
    ) -> None:
        """`folded`: the layers' norm weights go into the linears behind them; a rotation needs it.

        Blocks with scales of their own are better without: the norms' weights are small where activations are large.
        `scales`: of each layer, to even out its activations; those behind norms and of values only where not folded.
        """
        assert folded or not rotated, "a rotated norm has no weights"
        self.folded = folded
        self.scales = scales
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.config = self.spec.shapes
        self.residual = Rotation(self.config.hidden, identity=not rotated)
        self.values = Rotation(self.config.head_dim, identity=not rotated)

    def embedding_blocks(self) -> Iterator[Array]:
        """The embedding in blocks of rows: whole, it would need a gigabyte."""
        config = self.config
        self.checkpoint.check_shape(EMBEDDING, config.vocabulary, config.hidden)
        for start in range(0, config.vocabulary, EMBEDDING_BLOCK_ROWS):
            end = min(start + EMBEDDING_BLOCK_ROWS, config.vocabulary)
            yield self.residual.apply(self.checkpoint.rows(EMBEDDING, start, end))

    def attention_input(self, layer: int, kind: str) -> tuple[Array, Array]:
        """Weight and bias of `q`, `k` or `v`. What rotates a head's values is undone in the output projection."""
        config = self.config
        heads = config.heads if kind == "q" else config.kv_heads
        name = f"model.layers.{layer}.self_attn.{kind}_proj"
        weight: Array = self.checkpoint.tensor(f"{name}.weight", heads * config.head_dim, config.hidden)
        bias: Array = self.checkpoint.tensor(f"{name}.bias", heads * config.head_dim)
        if kind == "v":
            weight = self.values.apply(weight.T.reshape(config.hidden, heads, config.head_dim))
            weight = weight.reshape(config.hidden, -1).T
            bias = self.values.apply(bias.reshape(heads, config.head_dim)).reshape(-1)
        if self.scales and not self.folded:
            weight = weight / self.scales[layer].attention
            if kind == "v":
                weight, bias = weight * self.scales[layer].values[:, None], bias * self.scales[layer].values
        return self._from_residual(weight, f"model.layers.{layer}.input_layernorm.weight"), bias

    def attention_output(self, layer: int) -> Array:
        config = self.config
        weight: Array = self.checkpoint.tensor(
            f"model.layers.{layer}.self_attn.o_proj.weight", config.hidden, config.heads * config.head_dim
        )
        if self.scales and not self.folded:
            weight = weight / self._value_scales(layer)
        return self._to_residual(self.rotate_values(weight))

    def feed_forward(self, layer: int, kind: str) -> Array:
        """Weight of `gate`, `up` or `down`."""
        config = self.config
        shape = (config.hidden, config.intermediate) if kind == "down" else (config.intermediate, config.hidden)
        weight: Array = self.checkpoint.tensor(f"model.layers.{layer}.mlp.{kind}_proj.weight", *shape)
        if kind == "down":
            return self._to_residual(weight / self.scales[layer].down if self.scales else weight)
        if self.scales and not self.folded:
            weight = weight / self.scales[layer].feed_forward
        if self.scales and kind == "up":
            weight = weight * self.scales[layer].down[:, None]
        return self._from_residual(weight, f"model.layers.{layer}.post_attention_layernorm.weight")

    def inputs(self, layer: int, seen: LayerInputs) -> tuple[Array, Array, Array, Array]:
        """What goes into `q`, `k` and `v`, into the output projection, into `gate` and `up`, and into `down`."""
        if self.folded:
            attention, feed_forward = self.residual.apply(seen.attention), self.residual.apply(seen.feed_forward)
        else:
            attention = seen.attention * self.norm(layer, "input")
            feed_forward = seen.feed_forward * self.norm(layer, "post_attention")
        output = self.rotate_values(seen.output)
        if self.scales and not self.folded:
            output = output * self._value_scales(layer)
        return attention, output, feed_forward, seen.down * self.scales[layer].down if self.scales else seen.down

    def head(self, weight: Array) -> Array:
        """A weight `[out, hidden]` that reads the final norm's output."""
        return self.residual.apply(weight * self.checkpoint.tensor("model.norm.weight", self.config.hidden))

    def rotate_values(self, rows: Array) -> Array:
        """Rotate each head's values within the head: rows `[..., heads * head_dim]`."""
        per_head = rows.reshape(-1, self.config.heads, self.config.head_dim)
        return self.values.apply(per_head).reshape(rows.shape)

    def _from_residual(self, weight: Array, norm: str) -> Array:
        return self.residual.apply(weight * self.checkpoint.tensor(norm, self.config.hidden)) if self.folded else weight

    def norm(self, layer: int, kind: str) -> Array:
        """What is left of a norm's weight, `input` or `post_attention`: ones where it is folded into the linears."""
        weight: Array = self.checkpoint.tensor(f"model.layers.{layer}.{kind}_layernorm.weight", self.config.hidden)
        if self.folded:
            return np.ones_like(weight)
        if self.scales:
            scales = self.scales[layer]
            weight = weight * (scales.attention if kind == "input" else scales.feed_forward)
        return weight

    def _value_scales(self, layer: int) -> Array:
        """The scales of values as the query heads see them, `[heads * head_dim]`."""
        assert self.scales is not None
        config = self.config
        values = self.scales[layer].values.reshape(config.kv_heads, 1, config.head_dim)
        shared = (config.kv_heads, config.heads // config.kv_heads, config.head_dim)
        return np.broadcast_to(values, shared).reshape(-1)

    def _to_residual(self, weight: Array) -> Array:
        """Rotate the side of a weight `[hidden, in]` that writes to the residual stream."""
        return self.residual.apply(weight.T).T
