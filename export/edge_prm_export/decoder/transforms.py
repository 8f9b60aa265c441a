"""Exact transforms of a decoder: each changes weights and the inputs of linear layers so that all products stay.

A writer lists the transforms that it wants (see `TransformedDecoder`); the order is the order of application. Each
transform says once what it does to weights (`weights`), to the rows that enter them (`inputs`), and to vectors of the
residual stream (`residual`: embedding rows and the head's weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import LayerInputs, LayerWeights, ResidualDerivatives
from edge_prm_export.decoder.rotate import Rotation
from edge_prm_export.decoder.smooth import LayerScales


class Transform:
    """The transform that changes nothing; the others override what they change."""

    def weights(self, index: int, layer: LayerWeights) -> LayerWeights:
        """The weights of layer `index` after this transform."""
        return layer

    def inputs(self, index: int, inputs: LayerInputs) -> LayerInputs:
        """The rows that enter the transformed weights of layer `index`, without the norms' weights."""
        return inputs

    def residual(self, rows: AnyFloat) -> AnyFloat:
        """Vectors of the residual stream, `[..., hidden]`."""
        return rows


class FoldNorms(Transform):
    """The weights of a layer's two norms go into the linear layers after them; the norms' own become ones."""

    def weights(self, index: int, layer: LayerWeights) -> LayerWeights:
        """Columns of q, k, v, gate and up are multiplied by the norm's weight."""
        norms = layer.norms

        def attention(weight: AnyFloat) -> AnyFloat:
            return weight * norms.attention

        def feed_forward(weight: AnyFloat) -> AnyFloat:
            return weight * norms.feed_forward

        ones = np.ones_like(norms.attention)
        return replace(
            layer,
            q=layer.q.map(attention),
            k=layer.k.map(attention),
            v=layer.v.map(attention),
            gate=layer.gate.map(feed_forward),
            up=layer.up.map(feed_forward),
            norms=replace(norms, attention=ones, feed_forward=ones),
        )


class RotateResidual(Transform):
    """The residual stream is rotated: exact once `FoldNorms` came before (QuaRot, arxiv.org/abs/2404.00456)."""

    def __init__(self, shapes: Shapes) -> None:
        self._rotation = Rotation(shapes.hidden)

    def weights(self, index: int, layer: LayerWeights) -> LayerWeights:
        """Rotates the input side of q, k, v, gate and up, and the output side of o and down."""

        def reads(weight: AnyFloat) -> AnyFloat:
            return self._rotation.apply(weight)

        def writes(weight: AnyFloat) -> AnyFloat:
            return self._rotation.apply(weight.T).T

        return replace(
            layer,
            q=layer.q.map(reads),
            k=layer.k.map(reads),
            v=layer.v.map(reads),
            o=layer.o.map(writes),
            gate=layer.gate.map(reads),
            up=layer.up.map(reads),
            down=layer.down.map(writes),
        )

    def inputs(self, index: int, inputs: LayerInputs) -> LayerInputs:
        """Rotates what the norms give, and derivatives with respect to the stream."""
        found = inputs.derivatives
        return replace(
            inputs,
            attention=self._rotation.apply(inputs.attention),
            feed_forward=self._rotation.apply(inputs.feed_forward),
            derivatives=found
            and ResidualDerivatives(self._rotation.apply(found.feed_forward), self._rotation.apply(found.end)),
        )

    def residual(self, rows: AnyFloat) -> AnyFloat:
        """Rotates vectors of the residual stream."""
        return self._rotation.apply(rows)


class RotateValues(Transform):
    """Each head's values are rotated; the output projection undoes it. Queries and keys stay as they are."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._rotation = Rotation(shapes.head_dim)

    def weights(self, index: int, layer: LayerWeights) -> LayerWeights:
        """Rotates the output side of v (and its bias), and the input side of o."""
        shapes = self._shapes

        def value(weight: AnyFloat) -> AnyFloat:
            per_head = weight.T.reshape(shapes.hidden, shapes.kv_heads, shapes.head_dim)
            return self._rotation.apply(per_head).reshape(shapes.hidden, -1).T

        def bias(values: AnyFloat) -> AnyFloat:
            return self._rotation.apply(values.reshape(shapes.kv_heads, shapes.head_dim)).reshape(-1)

        return replace(layer, v=layer.v.map(value, bias), o=layer.o.map(self._heads))

    def inputs(self, index: int, inputs: LayerInputs) -> LayerInputs:
        """Rotates what attention gives, within each head."""
        return replace(inputs, output=self._heads(inputs.output))

    def _heads(self, rows: AnyFloat) -> AnyFloat:
        """Rotate rows `[..., heads * head_dim]` within each head."""
        per_head = rows.reshape(-1, self._shapes.heads, self._shapes.head_dim)
        return self._rotation.apply(per_head).reshape(rows.shape)


class Smooth(Transform):
    """SmoothQuant (arxiv.org/abs/2211.10438): activations are scaled by channel, the weights after them by the inverse.

    `scales`: of each layer. `only_down`: only what enters `down`; the other scales need norms that are not folded and
    values that are not rotated.
    """

    def __init__(self, shapes: Shapes, scales: Sequence[LayerScales], *, only_down: bool = False) -> None:
        self._shapes = shapes
        self._scales = scales
        self._only_down = only_down

    def weights(self, index: int, layer: LayerWeights) -> LayerWeights:
        """Divides weights by the scales of their inputs; norms, v and up are multiplied by them."""
        scales = self._scales[index]
        if not self._only_down:
            layer = self._smooth_norms(scales, layer)
            layer = replace(
                layer,
                v=layer.v.map(lambda weight: weight * scales.values[:, None], lambda bias: bias * scales.values),
                o=layer.o.map(lambda weight: weight / self._per_query_head(scales)),
            )
        return replace(
            layer,
            up=layer.up.map(lambda weight: weight * scales.down[:, None]),
            down=layer.down.map(lambda weight: weight / scales.down),
        )

    def inputs(self, index: int, inputs: LayerInputs) -> LayerInputs:
        """Multiplies what enters o and down; the norms' weights carry the other scales."""
        scales = self._scales[index]
        output = inputs.output if self._only_down else inputs.output * self._per_query_head(scales)
        return replace(inputs, output=output, down=inputs.down * scales.down)

    def _smooth_norms(self, scales: LayerScales, layer: LayerWeights) -> LayerWeights:
        def attention(weight: AnyFloat) -> AnyFloat:
            return weight / scales.attention

        def feed_forward(weight: AnyFloat) -> AnyFloat:
            return weight / scales.feed_forward

        norms = replace(
            layer.norms,
            attention=layer.norms.attention * scales.attention,
            feed_forward=layer.norms.feed_forward * scales.feed_forward,
        )
        return replace(
            layer,
            q=layer.q.map(attention),
            k=layer.k.map(attention),
            v=layer.v.map(attention),
            gate=layer.gate.map(feed_forward),
            up=layer.up.map(feed_forward),
            norms=norms,
        )

    def _per_query_head(self, scales: LayerScales) -> AnyFloat:
        """The scales of values as the query heads read them, `[heads * head_dim]`."""
        shapes = self._shapes
        values = scales.values.reshape(shapes.kv_heads, 1, shapes.head_dim)
        shared = (shapes.kv_heads, shapes.heads // shapes.kv_heads, shapes.head_dim)
        return np.broadcast_to(values, shared).reshape(-1)
