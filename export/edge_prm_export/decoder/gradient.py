"""How much a reward changes with the residual stream: derivatives by back-propagation, in numpy fp32.

A rounding error costs what it moves rewards. Each layer's errors reach them along few directions of the residual
stream. A quantizer that knows these directions can keep errors out of them (see `quantize/feedback.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.encode import Encoded
from edge_prm.head import Head, Layers
from edge_prm_export.decoder.arithmetic import product, rms, rms_back, swiglu, swiglu_back
from edge_prm_export.decoder.attention import QueryKeyValue
from edge_prm_export.decoder.layers import LayerWeights, ResidualDerivatives, concatenated, read_layer
from edge_prm_export.decoder.names import FINAL_NORM, tensor_name, tensor_shape
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.source import TensorSource

ROWS = 512
"""Rows that are kept of a layer: those with the largest derivatives."""


@dataclass(frozen=True, eq=False)
class FeedForwardDerivatives:
    """Derivatives `[rows, channels]` with respect to what `gate` and `up` give; `inputs`: what enters `down`."""

    gate: AnyFloat
    up: AnyFloat
    inputs: AnyFloat


def reward_derivatives(
    source: TensorSource, head: Head, texts: Sequence[Encoded], advance: Callable[[int], None] = lambda count: None
) -> list[ResidualDerivatives]:
    """Derivatives of the logits of all rewards of `texts`, layer by layer.

    The logits of a text are added up with random signs: the mean square of such a sum's derivative is the sum of the
    squares of each logit's. `advance(1)` is called twice for each layer. Nothing is returned where nothing is read.
    """
    run = ReferenceRun(source, texts)
    if not run.is_read.any():
        return []
    states = []
    for index in range(source.spec.shapes.layers):
        states.append(run.state)
        run.run_layer(index)
        advance(1)
    derivative = _by_final_state(source, head, run)
    found = []
    for index in reversed(range(source.spec.shapes.layers)):
        layer = _Layer(run, read_layer(source, index), source.spec.eps)
        middle, by_state = layer.back(states.pop(), derivative)
        found.append(_largest(rms(middle, source.spec.eps), derivative))
        derivative = by_state
        advance(1)
    return found[::-1]


def feed_forward_derivatives(
    layer: tuple[AnyFloat, AnyFloat, AnyFloat], rows: AnyFloat, by_end: AnyFloat
) -> FeedForwardDerivatives:
    """Derivatives inside the feed-forward `layer`: the weights `(gate, up, down)`.

    `rows` `[rows, hidden]` enter gate and up; `by_end` is the derivative with respect to what down gives.
    """
    gate, up, down = layer
    gate_out, up_out = rows @ gate.T, rows @ up.T
    by_gate, by_up = swiglu_back(gate_out, up_out, by_end @ down)
    return FeedForwardDerivatives(by_gate, by_up, swiglu(gate_out, up_out))


def head_derivatives(layers: Layers, rows: AnyFloat) -> AnyFloat:
    """The derivative of each row's logit with respect to the row, `[r, hidden]`; of two logits, their difference's."""
    values, steps = rows, []
    for index, (weight, bias) in enumerate(layers):
        steps.append(values > 0 if index else np.ones_like(values, dtype=np.bool_))
        values = (np.maximum(values, 0) if index else values) @ weight.T + bias
    derivative = np.tile(np.array([1.0] if values.shape[-1] == 1 else [-1.0, 1.0], np.float32), (len(rows), 1))
    for (weight, _), positive in zip(reversed(layers), reversed(steps), strict=True):
        derivative = derivative @ weight * positive
    return derivative


def _by_final_state(source: TensorSource, head: Head, run: ReferenceRun) -> AnyFloat:
    """Derivatives with respect to the residual stream after the last layer, `[tokens, hidden]`."""
    norm = source.tensor(tensor_name(FINAL_NORM), *tensor_shape(source.spec, FINAL_NORM))
    read = run.state[run.is_read]
    by_normed = head_derivatives(head.layers, rms(read, source.spec.eps) * norm)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (len(read), 1))
    derivative = np.zeros_like(run.state)
    derivative[run.is_read] = rms_back(read, source.spec.eps, by_normed * norm * signs)
    return derivative


class _Layer:
    """One layer, computed again and differentiated; `run` knows which row belongs to which text."""

    def __init__(self, run: ReferenceRun, layer: LayerWeights, eps: float) -> None:
        self._run, self._layer, self._eps = run, layer, eps

    def back(self, state: AnyFloat, by_end: AnyFloat) -> tuple[AnyFloat, AnyFloat]:
        """The residual stream between attention and feed-forward, and the derivative with respect to `state`."""
        layer, norms = self._layer, self._layer.norms
        normed = rms(state, self._eps) * norms.attention
        found = QueryKeyValue(*(product(normed, linear) for linear in (layer.q, layer.k, layer.v)))
        output = self._run.by_text(lambda part: self._run.attention.forward(QueryKeyValue(*part), norms), *found)
        middle = state + product(output, layer.o)
        by_middle = by_end + self._feed_forward_back(middle, by_end)
        by_output = by_middle @ layer.o.weight()
        by_normed = self._attention_back(found, by_output)
        return middle, by_middle + rms_back(state, self._eps, by_normed * norms.attention)

    def _feed_forward_back(self, middle: AnyFloat, by_end: AnyFloat) -> AnyFloat:
        layer, norm = self._layer, self._layer.norms.feed_forward
        gate, up = layer.gate.weight(), layer.up.weight()
        found = feed_forward_derivatives((gate, up, layer.down.weight()), rms(middle, self._eps) * norm, by_end)
        return rms_back(middle, self._eps, (found.gate @ gate + found.up @ up) * norm)

    def _attention_back(self, found: QueryKeyValue, by_output: AnyFloat) -> AnyFloat:
        """The derivative with respect to the normed rows that enter q, k and v."""
        layer, attention = self._layer, self._run.attention

        def back(part: list[AnyFloat]) -> AnyFloat:
            *rows, derivative = part
            return np.concatenate(attention.backward(QueryKeyValue(*rows), layer.norms, derivative), axis=1)

        weight, _ = concatenated((layer.q, layer.k, layer.v))
        return self._run.by_text(back, *found, by_output) @ weight


def _largest(feed_forward: AnyFloat, by_end: AnyFloat) -> ResidualDerivatives:
    kept = np.argsort(-(by_end**2).sum(axis=1), kind="stable")[:ROWS]
    return ResidualDerivatives(feed_forward[kept], by_end[kept])
