"""Round the weights of a K-quantized GGUF once more, so that their errors cancel (GPTQ, on llama.cpp's own grid).

llama.cpp's quantizer writes the file; where a tensor has a type whose grid we know, its integers are found anew, with
the inputs that the layer saw on our own texts (see quantize.py). Nothing else of the file changes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.backends.gguf.header import read_tensors
from edge_prm_export.decoder.reference import LayerInputs, ReferenceRun
from edge_prm_export.decoder.weights import DecoderWeights
from edge_prm_export.gguf.kquants import BYTES, SUPER, grid_of, put_integers
from edge_prm_export.quantize.gptq import GPTQ

Array = npt.NDArray[np.floating[Any]]


def compensate(path: Path, weights: DecoderWeights, run: ReferenceRun) -> Iterator[int]:
    """Rewrite the integers of a file in place; `run` stands before its first layer. Yields each layer's number."""
    tensors = read_tensors(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for layer in range(weights.config.layers):
            seen = run.run_layer(layer)
            for rows, names in _inputs(weights, layer, seen):
                known = {name: tensors[name] for name in names if tensors[name][1] in BYTES}
                if not known:
                    continue
                compensation = GPTQ(rows)
                for name, (shape, kind, offset) in known.items():
                    length = shape[0] * shape[1] // SUPER * BYTES[kind]
                    stored = np.frombuffer(data, np.uint8, length, offset).reshape(shape[0], -1).copy()
                    integers = compensation.quantize_to_grid(_weight(weights, layer, name), grid_of(stored, kind))
                    put_integers(stored, kind, np.ascontiguousarray(integers.T))
                    data[offset : offset + length] = stored.tobytes()
            yield layer
        data.flush()


def _inputs(weights: DecoderWeights, layer: int, seen: LayerInputs) -> Iterator[tuple[Array, list[str]]]:
    """What goes into the weights as they are stored, and their names."""
    prefix = f"blk.{layer}"
    attention, output, feed_forward, down = weights.inputs(layer, seen)
    yield attention, [f"{prefix}.attn_{part}.weight" for part in "qkv"]
    yield output, [f"{prefix}.attn_output.weight"]
    yield feed_forward, [f"{prefix}.ffn_{part}.weight" for part in ("gate", "up")]
    yield down, [f"{prefix}.ffn_down.weight"]


def _weight(weights: DecoderWeights, layer: int, name: str) -> Array:
    part = name.split(".")[2]
    if part == "attn_output":
        return weights.attention_output(layer)
    if part.startswith("attn_"):
        return weights.attention_input(layer, part.removeprefix("attn_"))[0]
    return weights.feed_forward(layer, part.removeprefix("ffn_"))
