"""How a recipe multiplies: the nodes of a linear layer, and its weight as it is stored.

`fp32` and `fp16` multiply in floating point. The weight-only recipes (`nbits`) store integers in blocks, and the engine
makes floating point of them as it multiplies.

`int8` never lets the scale of a token's activation depend on other tokens. After an RMSNorm the rotated rows are close
to Gaussian, whatever the text: one scale, known at export, fits all. Other rows have a scale each, largest |x| / 127;
those of SwiGLU have spikes, which a block-Hadamard rotation (folded into the weight) spreads over 64 values first.
Where errors hurt most for the time it takes, a row is split into two 8-bit parts (hi and lo), and the weight is
multiplied twice.

A reward sees the rounding errors of its own position most: towards the last layers, hardly any other. So a recipe may
give the read positions a second stream of their own, from some layer on: see `Streams`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.decoder.layers import LayerInputs, Linear
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import Transform
from edge_prm_export.onnx.writer import MS, GraphWriter

READ_COUNT = 10
"""How many calibration rows a row of a read position counts as: the further up a layer is, the less other rows touch a
reward."""
Weight = Callable[[], AnyFloat]
"""A weight `[out, in]` that is read when it is needed, so that only one is in memory."""


SUFFIXES = ("", ".read")
"""What ends the names of values, stream by stream."""


class Streams(NamedTuple):
    """Names of the values of one run, `[rows, width]`: of all its tokens, and of its read positions.

    Keys and values come from the rows of all tokens, so no reward depends on which other positions are read. The rows
    of read positions begin as a copy; they take what attention gives from the rows of all tokens, and give rewards.
    `all_rows` is "" in the last layer, which has no keys and values after it; `read` is "" before the stream begins.
    """

    all_rows: str
    read: str = ""

    def named(self) -> list[tuple[str, str]]:
        """(suffix of names, value) of each stream that is there."""
        return [(suffix, value) for suffix, value in zip(SUFFIXES, self, strict=True) if value]

    def of(self, suffix: str) -> str:
        """The value of a stream."""
        return self[SUFFIXES.index(suffix)]

    def each(self, work: Callable[[str, str], str]) -> Streams:
        """`work(suffix of names, value)` on each stream that is there."""
        return Streams(*(value and work(suffix, value) for suffix, value in zip(SUFFIXES, self, strict=True)))


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The linear layers of SwiGLU, and the calibration rows that enter them. `depth`: the share of the layers that
    come before this one."""

    gate: Linear
    up: Linear
    down: Linear
    inputs: LayerInputs
    depth: float


def counts(inputs: LayerInputs) -> AnyFloat:
    """How many rows each calibration row counts as when weights are rounded, `[tokens]`."""
    return np.where(inputs.is_read, np.float32(READ_COUNT), np.float32(1))


class Linears(Protocol):
    """What a recipe provides. `rows` names a value `[s, in]`; `inputs` are calibration rows."""

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """The type of the residual stream, norms, attention, keys and values."""

    @property
    def wide(self) -> Sequence[str]:
        """Names of the linear layers written so far that have 8 bits where most have fewer."""

    def read_layers(self, layers: int) -> int:
        """In how many of the last layers read positions have a stream of their own, 1 to `layers`."""

    def transforms(self, shapes: Shapes) -> Sequence[Transform]:
        """The exact transforms of the weights that this recipe wants."""

    def embed(self, name: str, ids: str, decoder: TransformedDecoder) -> str:
        """The embedding of `ids` `[s]`, `[s, hidden]`."""

    def attention_input(self, name: str, rows: str, linears: Sequence[Linear], inputs: LayerInputs) -> str:
        """Queries, keys and values of normed rows in one multiplication, `[s, sum of outs]`."""

    def attention_output(self, name: str, rows: Streams, linear: Linear, inputs: LayerInputs) -> Streams:
        """rows @ weight.T."""

    def feed_forward(self, name: str, rows: Streams, weights: FeedForward) -> Streams:
        """down(silu(gate(rows)) * up(rows))."""


def swiglu(graph: GraphWriter, name: str, gate_out: str, up_out: str) -> str:
    """silu(gate_out) * up_out; QuickGelu with alpha 1 is silu."""
    silu = graph.node("QuickGelu", [gate_out], f"{name}.silu", domain=MS, alpha=1.0)
    return graph.node("Mul", [silu, up_out], f"{name}.swiglu")
