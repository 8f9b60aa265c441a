"""How a recipe multiplies: the nodes of a linear layer, and its weight as it is stored.

`fp32` multiplies as it stands. `int8` never lets the scale of a token's activation depend on other tokens. Behind an
RMSNorm the rotated rows are close to Gaussian, whatever the text: one scale, known at export, fits all. Other rows have
a scale each, largest |x| / 127; those of SwiGLU have spikes, which a block-Hadamard rotation (folded into the weight)
spreads over 64 values first. Where errors hurt most for the time it takes, a row is written as two 8-bit terms, and the
weight multiplied twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_prm_export.decoder.weights import DecoderWeights
from edge_prm_export.onnx.writer import MS, GraphWriter

Array = npt.NDArray[np.floating[Any]]


Weight = Callable[[], Array]
"""A weight `[out, in]` that is read and rotated when it is wanted, so that only one is in memory."""


@dataclass(frozen=True)
class FeedForward:
    """The weights of SwiGLU, and rows that were seen to go into `down`, `[tokens, intermediate]`.

    `few_rows`: it runs on a handful of rows, so that its cost hardly counts.
    """

    gate: Weight
    up: Weight
    down: Weight
    down_seen: Array | None
    few_rows: bool


class Linears(Protocol):
    """What a recipe provides. `rows` names a value `[s, in]`; `seen` are rows that went in during calibration."""

    rotates: bool

    def embed(self, name: str, weights: DecoderWeights) -> str:
        """The embedding of `input_ids`, rotated."""

    def attention_input(self, name: str, rows: str, weight: Weight, seen: Array | None, bias: Array) -> str:
        """rows @ weight.T + bias: queries, keys and values of normed rows."""

    def attention_output(self, name: str, rows: str, weight: Weight, seen: Array | None) -> str:
        """rows @ weight.T."""

    def feed_forward(self, name: str, rows: str, weights: FeedForward, seen: Array | None) -> str:
        """down(silu(gate(rows)) * up(rows))."""


def swiglu(graph: GraphWriter, name: str, gated: str, raised: str) -> str:
    """silu(gated) * raised; QuickGelu with alpha 1 is silu."""
    silu = graph.node("QuickGelu", [gated], f"{name}.silu", domain=MS, alpha=1.0)
    return graph.node("Mul", [silu, raised], f"{name}.swiglu")
