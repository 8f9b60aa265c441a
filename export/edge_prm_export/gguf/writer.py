"""Checkpoint -> GGUF file of an ordinary model of its architecture, with the reward head inside where it fits.

The output matrix is the embedding, for all families: the model is a judge and writes no text. With a rotation, the
norms are folded into the linear layers after them. Names, shapes and keys are those of the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.backends.gguf.layout import TensorSpec
from edge_prm.head import Head
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.decoder.transformed import EMBEDDING_BLOCK_ROWS, TransformedDecoder
from edge_prm_export.gguf.head import HeadRows, head_rows
from edge_prm_export.gguf.metadata import add_head, add_model
from edge_prm_export.gguf.tensors import GgufTensors
from edge_prm_export.gguf.vocabulary import add_tokenizer, spare_rows

_PLAIN = {"F32": np.float32, "F16": np.float16}


def write_gguf(
    path: Path, checkpoint: Checkpoint, decoder: TransformedDecoder, head: Head, type_name: str, embedding_type: str
) -> Iterator[str]:
    """Write a file whose linear layers have a ggml type (`Q8_0`, `F16`, `BF16`, `F32`); yields each tensor's name.

    `decoder`: the checkpoint's, after its transforms. `embedding_type`: that of the embedding, which holds the head: of
    eight bits at least. Everything else is F32. One tensor is in memory at a time, of the embedding a block of rows.
    """
    from gguf import GGUFWriter

    rows = head_rows(decoder, head, embedding_type, spare_rows(checkpoint))
    tensors = GgufTensors(decoder)
    types = {name: _type_of(spec, type_name, embedding_type) for name, spec in tensors.specs().items()}
    writer = GGUFWriter(path, tensors.layout.architecture)
    try:
        add_model(writer, checkpoint, tensors.layout, rotated=decoder.rotated)
        add_head(writer, rows)
        add_tokenizer(writer, checkpoint)
        sizes = {name: _add_info(writer, name, spec.shape, types[name]) for name, spec in tensors.specs().items()}
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, spec in tensors.specs().items():
            if spec.role == "embedding":
                writer.write_tensor_data(_Blocks(_embedding_with_head(decoder, rows), types[name], sizes[name]))
            else:
                value = np.ascontiguousarray(tensors.value(spec), dtype=np.float32)
                assert value.shape == spec.shape, name
                writer.write_tensor_data(_quantized(value, types[name]))
            yield name
    finally:
        writer.close()


def _type_of(spec: TensorSpec, type_name: str, embedding_type: str) -> str:
    if spec.role == "embedding":
        return embedding_type
    return "F32" if len(spec.shape) == 1 else type_name


def _add_info(writer: Any, name: str, shape: tuple[int, ...], type_name: str) -> int:
    """Announce a tensor; returns its bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    plain, type_ = _PLAIN.get(type_name), GGMLQuantizationType[type_name]
    stored = shape if plain else quant_shape_to_byte_shape(shape, type_)
    item: np.dtype[Any] = np.dtype(plain or np.uint8)
    size = int(np.prod(stored)) * item.itemsize
    writer.add_tensor_info(name, stored, item, size, type_)
    return size


def _quantized(values: AnyFloat, type_name: str) -> Any:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values, GGMLQuantizationType[type_name])


class _Blocks:
    """What GGUFWriter needs of an array, for one that is written block by block: an embedding may take 2 GB."""

    def __init__(self, blocks: Iterator[AnyFloat], type_name: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self._blocks = blocks
        self._type_name = type_name

    def tofile(self, file: Any) -> None:
        """Write all blocks, each quantized by itself: rows are quantized one by one anyway."""
        for block in self._blocks:
            _quantized(block, self._type_name).tofile(file)


def _embedding_with_head(decoder: TransformedDecoder, rows: HeadRows | None) -> Iterator[AnyFloat]:
    """Blocks of the embedding's rows, with the head's two in their places."""
    start = 0
    for block in decoder.embedding_blocks():
        if rows is not None:
            for row, values in zip((rows.row, rows.residual), rows.values, strict=True):
                if start <= row < start + len(block):
                    block = block.copy()
                    block[row - start] = values
        start += EMBEDDING_BLOCK_ROWS
        yield np.ascontiguousarray(block, dtype=np.float32)
