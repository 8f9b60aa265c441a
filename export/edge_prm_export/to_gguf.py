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

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_prm.backends.gguf import MODEL_NAME, GgufModel, engine_lines, reason
from edge_prm.backends.gguf_file import HEAD_NAME, RESIDUAL_STEP, place_of
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import ExportError, UnsupportedArchitectureError
from edge_prm.manifest import Manifest, Recipe
from edge_prm_export.checkpoint import Checkpoint
from edge_prm_export.compensate import compensate
from edge_prm_export.gguf_metadata import add_model, add_tokenizer, spare_rows
from edge_prm_export.golden import EncodedTexts, Written, encode_texts, entry_of
from edge_prm_export.head import RewardHead
from edge_prm_export.more_texts import MORE
from edge_prm_export.progress import Progress
from edge_prm_export.recipes import GGUF_TYPES
from edge_prm_export.reference import ReferenceRun
from edge_prm_export.smooth import layer_scales
from edge_prm_export.texts import CALIBRATION
from edge_prm_export.weights import EMBEDDING_BLOCK_ROWS, DecoderWeights

Array = npt.NDArray[np.floating[Any]]

MIXED = {"Q4_K_M": "Q6_K"}
"""Types whose `down_proj` is all of a better one, which llama.cpp gives to half of the layers: 4% more bytes."""
MOST_SCORED = 12
"""Texts that recipes are compared on, golden ones first: reading every token costs time."""
_BLOCK = 32  # values that share a scale; a row of a quantized type is a number of them


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


def write_model(
    folder: Path,
    recipes: tuple[Recipe, ...],
    manifest: Manifest,
    checkpoint: Checkpoint,
    head: RewardHead,
    encoder: Encoder,
    golden: EncodedTexts,
    progress: Progress,
) -> Written:
    """Write the GGUF (and the head, where it stands beside it), and score the golden texts in full precision.

    Of several recipes that is kept whose rewards, read at every token of our own texts, are closest to full precision:
    a rotation spreads outliers, and costs a little where there are none.
    """
    for recipe in recipes:
        check_rows(checkpoint, recipe.name.upper())
    bits = GGUF_TYPES[recipes[0].name.upper()].bits
    own = () if bits >= 16 else CALIBRATION if bits > 8 else (*CALIBRATION, *MORE)
    calibration = encode_texts(encoder, own)
    texts = [encoded for *_, encoded in golden + calibration]
    run = ReferenceRun(checkpoint, [text.ids for text in texts])
    scales = []
    with progress("scoring in full precision", checkpoint.config.layers) as advance:
        for layer in range(checkpoint.config.layers):
            seen = run.run_layer(layer)
            if bits < 16:
                scales.append(layer_scales(checkpoint, layer, seen, bits))
            advance(1)
    written = []
    for index, recipe in enumerate(recipes):
        place = folder / f"candidate-{index}"
        place.mkdir()
        weights = DecoderWeights(checkpoint, rotated=recipe.rotated, folded=recipe.rotated, scales=scales)
        _write_candidate(place, recipe, weights, head, progress)
        if not GGUF_TYPES[recipe.name.upper()].direct:
            again = ReferenceRun(checkpoint, [text.ids for text in texts])
            with progress("compensating rounding errors", checkpoint.config.layers) as advance:
                for _ in compensate(place / MODEL_NAME, weights, again):
                    advance(1)
        files = {path.name: entry_of(path) for path in place.iterdir()}
        error = 0.0
        if bits < 16:
            model = GgufModel(Bundle(place, replace(manifest, recipe=recipe, files=files)), device="cpu")
            error, shift = _difference(model, run, head, texts[:MOST_SCORED], progress)
            model.close()
            shift_bias(place, -shift)
            files = {path.name: entry_of(path) for path in place.iterdir()}
        written.append((error, place, recipe, files))
    _, place, recipe, files = min(written, key=lambda found: found[0])
    for name in files:
        (place / name).rename(folder / name)
    for _, place, *_ in written:
        shutil.rmtree(place)
    return Written(recipe, files, [run.rewards(head, index, text.read_at) for index, (*_, text) in enumerate(golden)])


def _write_candidate(
    place: Path, recipe: Recipe, weights: DecoderWeights, head: RewardHead, progress: Progress
) -> None:
    name, rotated = recipe.name.upper(), recipe.rotated
    direct = GGUF_TYPES[name].direct
    first = place / (MODEL_NAME if direct else f"{MODEL_NAME}.f16")
    kind = name if direct else "F16"
    label = f"writing {kind} weights" + ", rotated" * rotated
    with progress(label, 2 + 12 * weights.config.layers) as advance:
        for _ in write_gguf(first, weights, head, kind, kind if direct else "Q8_0"):
            advance(1)
    if not direct:
        quantize(first, place / MODEL_NAME, name, progress)
        first.unlink()
    if head_rows(weights, head, "Q8_0") is None:
        write_head(place / HEAD_NAME, weights, head)


def _difference(
    model: GgufModel, run: ReferenceRun, head: RewardHead, texts: list[Encoded], progress: Progress
) -> tuple[float, float]:
    """Over every token: how far logits lie from full precision on average, and how far rewards do without that shift.

    Quantization shifts a head's output a little, the same way in all texts; a bias can take that back.
    """
    found, expected = [], []
    with progress("comparing with full precision", len(texts)) as advance:
        for index, text in enumerate(texts):
            everywhere = range(len(text.ids))
            sequence = model.start()
            found.append(sequence.extend(text.ids, everywhere).astype(np.float64))
            expected.append(np.array(run.rewards(head, index, everywhere), dtype=np.float64))
            sequence.close()
            advance(1)
    logits, exact = _logits(np.concatenate(found)), _logits(np.concatenate(expected))
    shift = float((logits - exact).mean())
    return float(np.abs(1 / (1 + np.exp(shift - logits)) - 1 / (1 + np.exp(-exact))).mean()), shift


def _logits(rewards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rewards that are rounded to 0 or 1 count as almost so."""
    rewards = rewards.clip(1e-4, 1 - 1e-4)
    return np.log(rewards / (1 - rewards))


def shift_bias(folder: Path, shift: float) -> None:
    """Move the output of the head in a bundle's folder: in the file's metadata, or in the layers beside it."""
    if (folder / HEAD_NAME).exists():
        with np.load(folder / HEAD_NAME) as stored:
            arrays = dict(stored)
        last = f"bias.{len(arrays) // 2 - 1}"
        arrays[last][-1] += shift  # the one output, or class 1
        np.savez(folder / HEAD_NAME, **arrays)
        return
    place = place_of(folder / MODEL_NAME, "edge_prm.head.bias")
    with open(folder / MODEL_NAME, "r+b") as file:
        file.seek(place)
        (bias,) = struct.unpack("<f", file.read(4))
        file.seek(place)
        file.write(struct.pack("<f", bias + shift))


def check_rows(checkpoint: Checkpoint, name: str) -> None:
    """Refuse a model whose rows do not divide into a quantized type's blocks."""
    config = checkpoint.config
    widths = (config.hidden, config.intermediate, config.heads * config.head_dim)
    if GGUF_TYPES[name].bits < 16 and any(width % _BLOCK for width in widths):
        odd = next(width for width in widths if width % _BLOCK)
        raise UnsupportedArchitectureError(
            checkpoint.name,
            f"GGUF type {name} for rows of {odd} values",
            f"multiples of {_BLOCK} as {name}, others as F16",
        )


def write_gguf(path: Path, weights: DecoderWeights, head: RewardHead, kind: str, embedding_kind: str) -> Iterator[str]:
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


def quantize(source: Path, target: Path, name: str, progress: Progress) -> None:
    """Let llama.cpp write `source` again in one of its own types; the embedding stays as it is."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.token_embedding_type = options.output_tensor_type = llama_cpp.GGML_TYPE_Q8_0
    options.allow_requantize = True  # for the embedding, which has its type already
    if name in MIXED:
        overrides = (llama_cpp.llama_model_tensor_override * 2)()  # the last one is empty: the end
        overrides[0].pattern, overrides[0].type = b"ffn_down", getattr(llama_cpp, f"GGML_TYPE_{MIXED[name]}")
        options.tt_overrides = overrides
    with progress(f"quantizing to {name}", 1) as advance, engine_lines() as lines:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), options)
        advance(1)
    if failed:
        raise ExportError(f"llama.cpp cannot quantize to {name}: {reason(lines)}; choose another --gguf-type")


def head_rows(weights: DecoderWeights, head: RewardHead, kind: str) -> HeadRows | None:
    """Where a sigmoid head goes and what stands there; None for other heads, and without two rows to spare."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    spare = spare_rows(weights.checkpoint)
    if head.kind != "sigmoid" or len(spare) < 2:
        return None
    weight, bias = head.layers[0]
    folded = weights.head(weight)
    scale = np.float32(1 / max(float(np.abs(folded).max()), 1e-30))
    wanted = (folded * scale).astype(np.float32)
    type_ = GGMLQuantizationType[kind]
    left = (wanted - dequantize(quantize(wanted, type_), type_)) * np.float32(RESIDUAL_STEP)
    return HeadRows(spare[0], spare[1], float(scale), float(bias[0]), (wanted[0], left[0]))


def write_head(path: Path, weights: DecoderWeights, head: RewardHead) -> None:
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
