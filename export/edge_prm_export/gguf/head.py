"""The reward head of a GGUF bundle: in two rows of the embedding where it fits, else in a file of its own.

A head with one output is one row of numbers, and so is a token's row of the output matrix. So the head's weight is
written into a row that no token uses, and the logit of that row is the head's output. What eight bits leave over of it
goes into a second such row, so the head is as good as in full precision. Scale and bias are in the metadata, under
`edge_prm.head`; other tools see two tokens that no text has. The final norm's weight is folded into the head.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.backends.gguf.head_file import HEAD_NAME
from edge_prm.backends.gguf.layout import RESIDUAL_STEP
from edge_prm.backends.gguf.model import MODEL_NAME
from edge_prm.head import Head
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.gguf.inspect import position_of


class HeadRows(NamedTuple):
    """A head in the embedding: output = (logit[row] + logit[residual] / RESIDUAL_STEP) / scale + bias.

    `values`: the two rows, float32 `[hidden]`.
    """

    row: int
    residual: int
    scale: float
    bias: float
    values: tuple[AnyFloat, AnyFloat]


def head_rows(decoder: TransformedDecoder, head: Head, embedding_type: str, spare: list[int]) -> HeadRows | None:
    """The rows of a head with one output; None for other heads, and without two `spare` rows of the embedding."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if head.outputs != 1 or len(head.layers) != 1 or len(spare) < 2:
        return None
    weight, bias = head.layers[0]
    folded = decoder.head(weight)
    scale = np.float32(1 / max(float(np.abs(folded).max()), 1e-30))
    scaled = (folded * scale).astype(np.float32)
    type_ = GGMLQuantizationType[embedding_type]
    residual = (scaled - dequantize(quantize(scaled, type_), type_)) * np.float32(RESIDUAL_STEP)
    return HeadRows(spare[0], spare[1], float(scale), float(bias[0]), (scaled[0], residual[0]))


def write_head_file(path: Path, decoder: TransformedDecoder, head: Head) -> None:
    """Write the linear layers of an external head, which reads the hidden state after the final norm."""
    arrays = {}
    for index, (weight, bias) in enumerate(head.layers):
        arrays[f"weight.{index}"] = (weight if index else decoder.head(weight)).astype(np.float32)
        arrays[f"bias.{index}"] = bias.astype(np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names of arrays, not options


def shift_bias(folder: Path, shift: float) -> None:
    """Add `shift` to the output of the head in a bundle's folder: in the GGUF's metadata, or in the head's file."""
    if (folder / HEAD_NAME).exists():
        with np.load(folder / HEAD_NAME) as stored:
            arrays = dict(stored)
        last = f"bias.{len(arrays) // 2 - 1}"
        arrays[last][-1] += shift  # the one output, or class 1
        np.savez(folder / HEAD_NAME, **arrays)
        return
    position = position_of(folder / MODEL_NAME, "edge_prm.head.bias")
    with open(folder / MODEL_NAME, "r+b") as file:
        file.seek(position)
        (bias,) = struct.unpack("<f", file.read(4))
        file.seek(position)
        file.write(struct.pack("<f", bias + shift))
