"""A layer's weights by role, read when they are needed: a layer of an 8B model takes 900 MB in float32.

`Linear` and `LayerWeights` are descriptions. A tensor is read, and transformed, each time that `weight()` or `bias()`
is called, so a writer decides how many tensors are in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_prm.arrays import AnyFloat, Float32
from edge_prm_export.decoder.names import layer_roles, tensor_name, tensor_shape
from edge_prm_export.decoder.source import TensorSource

Change = Callable[[AnyFloat], AnyFloat]
"""A function of a weight `[out, in]` or of a bias `[out]`."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer of `shape` (out, in); `read_bias` is None where it has no bias."""

    shape: tuple[int, int]
    read_weight: Callable[[], AnyFloat]
    read_bias: Callable[[], AnyFloat] | None = None

    def weight(self) -> AnyFloat:
        """The weight, float32 `[out, in]`, read and transformed now."""
        return self.read_weight()

    def bias(self) -> AnyFloat | None:
        """The bias, float32 `[out]`, read and transformed now; None where there is none."""
        return None if self.read_bias is None else self.read_bias()

    def map(self, weight: Change | None = None, bias: Change | None = None) -> Linear:
        """This layer with its weight and its bias changed by functions, which run when the tensors are read."""
        read_weight, read_bias = self.read_weight, self.read_bias
        return Linear(
            self.shape,
            read_weight if weight is None else _after(read_weight, weight),
            read_bias if bias is None or read_bias is None else _after(read_bias, bias),
        )


@dataclass(frozen=True, eq=False)
class Norms:
    """RMSNorm weights: `attention` and `feed_forward` `[hidden]`, `q` and `k` `[head_dim]` with qk_norm only."""

    attention: AnyFloat
    feed_forward: AnyFloat
    q: AnyFloat | None = None
    k: AnyFloat | None = None


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The linear layers of one decoder layer, and its norms."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    norms: Norms


@dataclass(frozen=True, eq=False)
class ResidualDerivatives:
    """How rewards change with what a layer adds to the residual stream, float32 `[rows, hidden]`.

    `end`: the derivative of rewards (of their logits, with random signs) with respect to the stream after the layer, at
    a few hundred tokens. `feed_forward`: the normed rows of the same tokens that enter gate and up.
    """

    feed_forward: AnyFloat
    end: AnyFloat


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Rows that enter a layer's linear layers, all texts one after the other, float32 `[tokens, in]`.

    `attention` enters q, k and v; `output` enters o; `feed_forward` enters gate and up; `down` enters down. Those of a
    reference run are normed, but not yet multiplied by the norms' weights. `is_read` bool `[tokens]`: rows of read
    positions. `derivatives`: None where they are not known.
    """

    attention: AnyFloat
    output: AnyFloat
    feed_forward: AnyFloat
    down: AnyFloat
    is_read: npt.NDArray[np.bool_]
    derivatives: ResidualDerivatives | None = None


def read_layer(source: TensorSource, index: int) -> LayerWeights:
    """The weights of layer `index` as the checkpoint has them. Reads the norms now, everything else when needed.

    CheckpointError (here, or when a tensor is read) for one that is missing or has another shape.
    """
    roles = layer_roles(source.spec)

    def reader(role: str) -> Callable[[], Float32]:
        return lambda: source.tensor(tensor_name(role, index), *tensor_shape(source.spec, role))

    def linear(role: str) -> Linear:
        outputs, inputs = tensor_shape(source.spec, role)
        return Linear((outputs, inputs), reader(role), reader(f"{role}_bias") if f"{role}_bias" in roles else None)

    def norm(role: str) -> Float32 | None:
        return reader(role)() if role in roles else None

    norms = Norms(reader("attention_norm")(), reader("feed_forward_norm")(), norm("q_norm"), norm("k_norm"))
    q, k, v, o, gate, up, down = (linear(role) for role in ("q", "k", "v", "o", "gate", "up", "down"))
    return LayerWeights(q, k, v, o, gate, up, down, norms)


def concatenated(linears: Sequence[Linear]) -> tuple[AnyFloat, AnyFloat | None]:
    """Weight and bias of linear layers with one input as one layer; the bias is None where they have none."""
    weight = np.concatenate([linear.weight() for linear in linears])
    biases = [bias for linear in linears if (bias := linear.bias()) is not None]
    return weight, np.concatenate(biases) if biases else None


def _after(read: Callable[[], AnyFloat], change: Change) -> Callable[[], AnyFloat]:
    return lambda: change(read())
