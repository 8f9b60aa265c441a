"""Checkpoint -> GGUF file of an ordinary qwen2 model, with the reward head inside where it fits.

A sigmoid head is one row of numbers, and so is a token's row of the output matrix: the head's weight is put where the
vocabulary has a row to spare, and the logit of that token is the head's output. What eight bits leave over of it goes
into a second spare row, so the head is as good as in full precision. Scales and bias stand in the metadata, under
`edge_prm.`; every other tool sees tokens that no text has. Heads that need more stand beside the file (`HEAD_NAME`).

Layout of file and names: llama.cpp's `gguf` package and its qwen2 architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_prm.encode import TOKENIZER_NAME
from edge_prm_export.checkpoint import Checkpoint
from edge_prm_export.head import RewardHead
from edge_prm_export.weights import EMBEDDING_BLOCK_ROWS, DecoderWeights

Array = npt.NDArray[np.floating[Any]]

HEAD_NAME = "reward_head.npz"
RESIDUAL_STEP = 128.0
"""What is left over is at most half of one 127th of a block's largest value, so it is written that much larger."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


class _Tensor(NamedTuple):
    """A tensor to be written: its bytes are made when their turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], Array]


class HeadRows(NamedTuple):
    """Vocabulary rows of a sigmoid head: reward = sigmoid(logit[row] / scale + logit[residual] / scale / 128 + bias)."""

    row: int
    residual: int
    scale: float
    bias: float
    values: tuple[Array, Array]


def write_gguf(path: Path, checkpoint: Checkpoint, head: RewardHead, kind: str, *, rotated: bool) -> Iterator[str]:
    """Write the file with weights of a ggml type (`Q8_0`, `F16`, `F32`); yields the name of each tensor written.

    The embedding, which holds the head, has eight bits at least. `rotated`: the residual stream is rotated as in the
    int8 recipe of ONNX; exact, and kinder to few bits.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape, quantize

    weights = DecoderWeights(checkpoint, rotated=rotated, folded=rotated)
    rows = head_rows(weights, head, kind)
    tensors = list(_tensors(weights, rows, kind))
    writer = GGUFWriter(path, "qwen2")
    try:
        _add_metadata(writer, checkpoint, rows, rotated)
        _add_tokenizer(writer, checkpoint)
        for name, shape, type_name, _ in tensors:
            type_ = GGMLQuantizationType[type_name]
            stored = quant_shape_to_byte_shape(shape, type_) if type_name not in ("F32", "F16") else shape
            item = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}.get(type_name, np.dtype(np.uint8))
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


def head_rows(weights: DecoderWeights, head: RewardHead, kind: str) -> HeadRows | None:
    """Where a sigmoid head goes and what stands there; None for other heads, and without two rows to spare."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    vocabulary = weights.config.vocabulary
    used = _vocabulary(weights.checkpoint)
    spare = [row for row in range(vocabulary) if used.get(row, _padding(row)) == _padding(row)]
    if head.kind != "sigmoid" or len(spare) < 2:
        return None
    weight, bias = head.layers[0]
    scale = float(1 / np.abs(weights.head(weight)).max())
    wanted = weights.head(weight) * np.float32(scale)
    type_ = GGMLQuantizationType[_embedding_kind(kind)]
    left = (wanted - dequantize(quantize(wanted, type_), type_)) * np.float32(RESIDUAL_STEP)
    return HeadRows(spare[0], spare[1], scale, float(bias[0]), (wanted[0], left[0]))


def write_head(path: Path, weights: DecoderWeights, head: RewardHead) -> None:
    """Write the linears of a head that stands beside the file; its input is the hidden state behind the final norm."""
    arrays = {}
    for index, (weight, bias) in enumerate(head.layers):
        arrays[f"weight.{index}"] = (weight if index else weights.head(weight)).astype(np.float32)
        arrays[f"bias.{index}"] = bias.astype(np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names of arrays, not options


def _tensors(weights: DecoderWeights, rows: HeadRows | None, kind: str) -> Iterator[_Tensor]:
    config = weights.config
    hidden, inner, width = config.hidden, config.intermediate, config.heads * config.head_dim
    shared = config.kv_heads * config.head_dim
    yield _Tensor("token_embd.weight", (config.vocabulary, hidden), _embedding_kind(kind), lambda: np.empty(0))
    yield _Tensor("output_norm.weight", (hidden,), "F32", lambda: weights.norm("model.norm.weight"))
    for layer in range(config.layers):
        prefix = f"blk.{layer}"
        yield _Tensor(
            f"{prefix}.attn_norm.weight", (hidden,), "F32",
            lambda layer=layer: weights.norm(f"model.layers.{layer}.input_layernorm.weight"),  # type: ignore[misc]
        )
        yield _Tensor(
            f"{prefix}.ffn_norm.weight", (hidden,), "F32",
            lambda layer=layer: weights.norm(f"model.layers.{layer}.post_attention_layernorm.weight"),  # type: ignore[misc]
        )
        for part, outputs in (("q", width), ("k", shared), ("v", shared)):
            both = _Once(lambda layer=layer, part=part: weights.attention_input(layer, part))  # type: ignore[misc]
            yield _Tensor(f"{prefix}.attn_{part}.weight", (outputs, hidden), kind, lambda both=both: both()[0])  # type: ignore[misc]
            yield _Tensor(f"{prefix}.attn_{part}.bias", (outputs,), "F32", lambda both=both: both()[1])  # type: ignore[misc]
        yield _Tensor(
            f"{prefix}.attn_output.weight", (hidden, width), kind, lambda layer=layer: weights.attention_output(layer)
        )  # type: ignore[misc]
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield _Tensor(
                f"{prefix}.ffn_{part}.weight",
                shape,
                kind,
                lambda layer=layer, part=part: weights.feed_forward(layer, part),
            )  # type: ignore[misc]


class _Once:
    """A value made when it is first asked for, and kept: a bias is written right behind its weight."""

    def __init__(self, make: Callable[[], tuple[Array, Array]]) -> None:
        self._make = make
        self._value: tuple[Array, Array] | None = None

    def __call__(self) -> tuple[Array, Array]:
        if self._value is None:
            self._value = self._make()
        return self._value


def _padding(id_: int) -> str:
    """What llama.cpp's converters call a row without a token; a tokenizer that went through GGUF lists them."""
    return f"[PAD{id_}]"


def _embedding_kind(kind: str) -> str:
    """Eight bits at least: the head's rows are among the embedding's."""
    return kind if kind in ("F32", "F16", "BF16") else "Q8_0"


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


def _add_metadata(writer: Any, checkpoint: Checkpoint, rows: HeadRows | None, rotated: bool) -> None:
    import edge_prm

    config = checkpoint.config
    writer.add_name(checkpoint.name)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocabulary)
    writer.add_string("edge_prm.version", edge_prm.__version__)
    writer.add_string("edge_prm.source.sha256", checkpoint.sha256())
    writer.add_bool("edge_prm.rotated", rotated)
    writer.add_string("edge_prm.head", "rows" if rows is not None else "beside")
    if rows is not None:
        writer.add_uint32("edge_prm.head.row", rows.row)
        writer.add_uint32("edge_prm.head.residual_row", rows.residual)
        writer.add_float32("edge_prm.head.scale", rows.scale)
        writer.add_float32("edge_prm.head.bias", rows.bias)


def _add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """The checkpoint's byte-level BPE, for other tools; edge-prm itself tokenizes with tokenizer.json."""
    data = _tokenizer_json(checkpoint)
    known = _vocabulary(checkpoint)
    special = {token["id"] for token in data.get("added_tokens", ()) if token.get("special")}
    added = {token["id"] for token in data.get("added_tokens", ())}
    tokens, types = [], []
    for id_ in range(checkpoint.config.vocabulary):
        tokens.append(known.get(id_, _padding(id_)))
        types.append(
            _UNUSED if id_ not in known else _CONTROL if id_ in special else _USER_DEFINED if id_ in added else _NORMAL
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = data["model"].get("merges", [])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ends = [id_ for id_, token in known.items() if token in ("<|im_end|>", "<|endoftext|>")]
    if ends:
        writer.add_eos_token_id(min(ends))
    writer.add_add_bos_token(False)


def _vocabulary(checkpoint: Checkpoint) -> dict[int, str]:
    """id -> token of tokenizer.json, added tokens included."""
    data = _tokenizer_json(checkpoint)
    known = {int(id_): token for token, id_ in data["model"]["vocab"].items()}
    return known | {int(token["id"]): token["content"] for token in data.get("added_tokens", ())}


def _tokenizer_json(checkpoint: Checkpoint) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((checkpoint.folder / TOKENIZER_NAME).read_text(encoding="utf-8"))
    return data
