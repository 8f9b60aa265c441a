"""Checkpoint -> GGUF file of an ordinary qwen2 model, with the reward head inside where it fits.

A sigmoid head is one row of numbers, and so is a token's row of the output matrix: the head's weight is put where the
vocabulary has a row to spare, and the logit of that token is the head's output. What eight bits leave over of it goes
into a second spare row, so the head is as good as in full precision. Scale and bias stand in the metadata, under
`edge_prm.`; every other tool sees tokens that no text has. Heads that need more stand beside the file (`HEAD_NAME`).

The final norm's weight is folded into the head, and with a rotation the other norms into the linears behind them; the
model is a judge and no longer writes text.

Layout of file and names: llama.cpp's `gguf` package and its qwen2 architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_prm.backends.gguf.checks import RESIDUAL_STEP
from edge_prm.head import Head
from edge_prm_export.decoder.weights import EMBEDDING_BLOCK_ROWS, DecoderWeights
from edge_prm_export.gguf.metadata import add_model, add_tokenizer, spare_rows

Array = npt.NDArray[np.floating[Any]]


class HeadRows(NamedTuple):
    """Vocabulary rows of a sigmoid head: output = (logit[row] + logit[residual] / RESIDUAL_STEP) / scale + bias."""

    row: int
    residual: int
    scale: float
    bias: float
    values: tuple[Array, Array]


class _Tensor(NamedTuple):
    """A tensor to be written: its values are made when their turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], Array]


def write_gguf(path: Path, weights: DecoderWeights, head: Head, kind: str, embedding_kind: str) -> Iterator[str]:
    """Write the file with weights of a ggml type (`Q8_0`, `F16`, `BF16`, `F32`); yields the name of each tensor.

    The embedding, which holds the head, has a type of its own, of eight bits at least.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape, quantize

    rows = head_rows(weights, head, embedding_kind)
    tensors = list(_tensors(weights, kind, embedding_kind))
    writer = GGUFWriter(path, "qwen2")
    try:
        add_model(writer, weights.checkpoint, rotated=not weights.residual.identity)
        _add_head(writer, rows)
        add_tokenizer(writer, weights.checkpoint)
        for name, shape, type_name, _ in tensors:
            type_ = GGMLQuantizationType[type_name]
            plain = {"F32": np.float32, "F16": np.float16}.get(type_name)
            stored = shape if plain else quant_shape_to_byte_shape(shape, type_)
            item: np.dtype[Any] = np.dtype(plain or np.uint8)
            writer.add_tensor_info(name, stored, item, int(np.prod(stored)) * item.itemsize, type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, shape, type_name, make in tensors:
            type_ = GGMLQuantizationType[type_name]
            if name == "token_embd.weight":
                blocks = [quantize(block, type_) for block in _embedding_with_head(weights, rows)]
                writer.write_tensor_data(np.concatenate(blocks))
            else:
                value = np.ascontiguousarray(make(), dtype=np.float32)
                assert value.shape == shape, name
                writer.write_tensor_data(quantize(value, type_))
            yield name
    finally:
        writer.close()


def head_rows(weights: DecoderWeights, head: Head, kind: str) -> HeadRows | None:
    """Where a sigmoid head goes and what stands there; None for other heads, and without two rows to spare."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    spare = spare_rows(weights.checkpoint)
    if head.outputs != 1 or len(spare) < 2:
        return None
    weight, bias = head.layers[0]
    folded = weights.head(weight)
    scale = np.float32(1 / max(float(np.abs(folded).max()), 1e-30))
    wanted = (folded * scale).astype(np.float32)
    type_ = GGMLQuantizationType[kind]
    left = (wanted - dequantize(quantize(wanted, type_), type_)) * np.float32(RESIDUAL_STEP)
    return HeadRows(spare[0], spare[1], float(scale), float(bias[0]), (wanted[0], left[0]))


def write_head(path: Path, weights: DecoderWeights, head: Head) -> None:
    """Write the linears of a head that stands beside the file; its input is the hidden state behind the final norm."""
    arrays = {}
    for index, (weight, bias) in enumerate(head.layers):
        arrays[f"weight.{index}"] = (weight if index else weights.head(weight)).astype(np.float32)
        arrays[f"bias.{index}"] = bias.astype(np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names of arrays, not options


def _tensors(weights: DecoderWeights, kind: str, embedding_kind: str) -> Iterator[_Tensor]:
    config = weights.config
    hidden, inner, width = config.hidden, config.intermediate, config.heads * config.head_dim
    shared = config.kv_heads * config.head_dim
    yield _Tensor("token_embd.weight", (config.vocabulary, hidden), embedding_kind, lambda: np.empty(0))
    yield _Tensor("output_norm.weight", (hidden,), "F32", lambda: np.ones(hidden))
    for layer in range(config.layers):
        yield from _layer(weights, layer, kind, hidden, inner, width, shared)


def _layer(
    weights: DecoderWeights, layer: int, kind: str, hidden: int, inner: int, width: int, shared: int
) -> Iterator[_Tensor]:
    def norm(name: str) -> Callable[[], Array]:
        return lambda: weights.norm(layer, name)

    def part_of(part: str, index: int) -> Callable[[], Array]:
        return lambda: both(part)[index]

    def feed_forward(part: str) -> Callable[[], Array]:
        return lambda: weights.feed_forward(layer, part)

    @lru_cache(maxsize=1)  # a bias is written right behind its weight
    def both(part: str) -> tuple[Array, Array]:
        return weights.attention_input(layer, part)

    prefix = f"blk.{layer}"
    yield _Tensor(f"{prefix}.attn_norm.weight", (hidden,), "F32", norm("input"))
    yield _Tensor(f"{prefix}.ffn_norm.weight", (hidden,), "F32", norm("post_attention"))
    for part, outputs in (("q", width), ("k", shared), ("v", shared)):
        yield _Tensor(f"{prefix}.attn_{part}.weight", (outputs, hidden), kind, part_of(part, 0))
        yield _Tensor(f"{prefix}.attn_{part}.bias", (outputs,), "F32", part_of(part, 1))
    yield _Tensor(f"{prefix}.attn_output.weight", (hidden, width), kind, lambda: weights.attention_output(layer))
    for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield _Tensor(f"{prefix}.ffn_{part}.weight", shape, kind, feed_forward(part))


def _embedding_with_head(weights: DecoderWeights, rows: HeadRows | None) -> Iterator[Array]:
    """Blocks of the embedding's rows, the head's two put in their places."""
    start = 0
    for block in weights.embedding_blocks():
        if rows is not None:
            for row, values in zip((rows.row, rows.residual), rows.values, strict=True):
                if start <= row < start + len(block):
                    block = block.copy()
                    block[row - start] = values
        start += EMBEDDING_BLOCK_ROWS
        yield np.ascontiguousarray(block, dtype=np.float32)


def _add_head(writer: Any, rows: HeadRows | None) -> None:
    writer.add_string("edge_prm.head", "rows" if rows is not None else "beside")
    if rows is not None:
        writer.add_uint32("edge_prm.head.row", rows.row)
        writer.add_uint32("edge_prm.head.residual_row", rows.residual)
        writer.add_float32("edge_prm.head.scale", rows.scale)
        writer.add_float32("edge_prm.head.bias", rows.bias)
