"""GPTQ for a K-quantized GGUF file, on llama.cpp's own grid.

llama.cpp's quantizer writes the file. Where a tensor has a type whose grid is known, its integers are rounded again,
with the inputs of the layer on our own texts (see edge_prm_export.quantize.gptq). Nothing else of the file changes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.backends.gguf.header import TensorInfo
from edge_prm_export.decoder.layers import LayerInputs
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.gguf.inspect import read_tensors
from edge_prm_export.gguf.kquants import BYTES, SUPER_BLOCK, grid_of, put_integers
from edge_prm_export.gguf.tensors import GgufTensors
from edge_prm_export.quantize.gptq import GPTQ


def compensate(path: Path, decoder: TransformedDecoder, run: ReferenceRun) -> Iterator[int]:
    """Round the integers of a file again, in place; `run` is before its first layer. Yields each layer's number."""
    infos, tensors = read_tensors(path), GgufTensors(decoder)
    specs = tensors.specs()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for layer in range(decoder.shapes.layers):
            for rows, roles in _inputs(decoder.inputs(layer, run.run_layer(layer))):
                names = [name for name, spec in specs.items() if spec.layer == layer and spec.role in roles]
                known = [name for name in names if infos[name].type in BYTES]
                if known:
                    gptq = GPTQ(rows)
                    for name in known:
                        _round_again(data, infos[name], tensors.value(specs[name]), gptq)
            yield layer
        data.flush()


def _inputs(inputs: LayerInputs) -> Iterator[tuple[AnyFloat, tuple[str, ...]]]:
    """Rows `[tokens, in]`, and the roles of the weights that they enter."""
    yield inputs.attention, ("q", "k", "v")
    yield inputs.output, ("o",)
    yield inputs.feed_forward, ("gate", "up")
    yield inputs.down, ("down",)


def _round_again(data: mmap.mmap, info: TensorInfo, weight: AnyFloat, gptq: GPTQ) -> None:
    (outputs, inputs), type_, offset = info
    length = outputs * inputs // SUPER_BLOCK * BYTES[type_]
    stored = np.frombuffer(data, np.uint8, length, offset).reshape(outputs, -1).copy()
    integers = gptq.quantize_to_grid(weight, grid_of(stored, type_))
    put_integers(stored, type_, np.ascontiguousarray(integers.T))
    data[offset : offset + length] = stored.tobytes()
