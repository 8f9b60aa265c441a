"""How a recipe multiplies: the nodes of a linear layer, and its weight as it is stored.

`fp32` and `fp16` multiply in floating point. The weight-only recipes (`nbits`) store integers in blocks, and the engine
makes floating point of them as it multiplies.

`int8` never lets the scale of a token's activation depend on other tokens. After an RMSNorm the rotated rows are close
to Gaussian, whatever the text: one scale, known at export, fits all. Other rows have a scale each, largest |x| / 127;
those of SwiGLU have spikes, which a block-Hadamard rotation (folded into the weight) spreads over 64 values first.
Where errors hurt most for the time it takes, a row is split into two 8-bit parts (hi and lo), and the weight is
multiplied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import LayerInputs, Linear
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import Transform
from edge_prm_export.onnx.writer import MS, GraphWriter

Weight = Callable[[], AnyFloat]
"""A weight `[out, in]` that is read when it is needed, so that only one is in memory."""


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The linear layers of SwiGLU, and the calibration rows that enter them; those of layer `index` of `layers`."""

    gate: Linear
    up: Linear
    down: Linear
    inputs: LayerInputs
    index: int
    layers: int

    @property
    def is_last_layer(self) -> bool:
        """Whether they run on the read positions only, so that their cost hardly counts."""
        return self.index + 1 == self.layers


class Linears(Protocol):
    """What a recipe provides. `rows` names a value `[s, in]`; `inputs` are calibration rows."""

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """The type of the residual stream, norms, attention, keys and values."""

    @property
    def wide(self) -> Sequence[str]:
        """Names of the linear layers written so far that have 8 bits where most have fewer."""

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """The exact transforms of the weights that this recipe wants."""

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`."""

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: LayerInputs) -> str:
        """Queries, keys and values of normed rows in one multiplication, `[s, sum of outs]`."""

    def attention_output(self, name: str, rows: str, linear: Linear, inputs: LayerInputs) -> str:
        """rows @ weight.T."""

    def feed_forward(self, name: str, rows: str, weights: FeedForward) -> str:
        """down(silu(gate(rows)) * up(rows))."""


def swiglu(graph: GraphWriter, name: str, gate_out: str, up_out: str) -> str:
    """silu(gate_out) * up_out; QuickGelu with alpha 1 is silu."""
    silu = graph.node("QuickGelu", [gate_out], f"{name}.silu", domain=MS, alpha=1.0)
    return graph.node("Mul", [silu, up_out], f"{name}.swiglu")
