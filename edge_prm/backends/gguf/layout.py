"""Names, shapes, metadata keys and types of GGUF files, by architecture.

The checks refuse a file that differs from these tables, and the exporter writes what they list. A model family is one
row of `LAYOUTS`, chosen by the manifest's `architecture.model_type` and never by the file.

Sources: llama.cpp's src/llama-arch.cpp (names), src/models (shapes, and what is optional), src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

RESIDUAL_STEP = 128.0
"""The second row of a reward head holds what eight bits leave over of the first one, times this: at most half of one
127th of a block's largest value."""
EXTERNAL_HEAD, HEAD_IN_ROWS = "beside", "rows"
"""Values of `edge_prm.head`: the head is in reward_head.npz, or in rows of the embedding."""


class Sizes(Protocol):
    """Sizes of a decoder: a manifest's architecture has them, and a checkpoint's shapes."""

    @property
    def layers(self) -> int:
        """Number of decoder layers."""

    @property
    def hidden(self) -> int:
        """Values of a hidden state."""

    @property
    def heads(self) -> int:
        """Query heads of a layer."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads of a layer."""

    @property
    def head_dim(self) -> int:
        """Values of a head."""

    @property
    def intermediate(self) -> int:
        """Values between the two halves of a feed-forward block."""

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is to the decoder, and its shape, outermost dimension first.

    `role`: for example `embedding`, `q_bias` or `q_norm`. `layer`: None for a tensor outside the layers. An
    `optional` tensor may be left out of a file.
    """

    role: str
    shape: tuple[int, ...]
    layer: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Key:
    """A metadata key of the model. `size`: the attribute of Sizes that is its value; None for a value above zero."""

    name: str
    type: type
    size: str | None = None


@dataclass(frozen=True)
class Layout:
    """How llama.cpp stores a decoder family. `architecture`: its name there, which begins the names of the keys.

    `interleaved_rope`: a head's rotated pairs are next to each other (llama.cpp's NORM), not half a head apart (NEOX).
    `rope_factors`: there may be a tensor of factors that the wavelengths of the rotary embedding are multiplied by.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    interleaved_rope: bool = False
    rope_factors: bool = False

    def metadata(self) -> Iterator[Key]:
        """Metadata keys of the model, in the order in which the exporter writes them."""
        for key in _KEYS:
            yield Key(f"{self.architecture}.{key.name}", key.type, key.size)
        if self.interleaved_rope:  # llama.cpp's `llama` reads it
            yield Key(f"{self.architecture}.rope.dimension_count", int, "head_dim")

    def tensors(self, sizes: Sizes) -> dict[str, TensorSpec]:
        """name -> tensor of a model whose output matrix is its embedding, in the order of the file."""
        tensors = {
            "token_embd.weight": TensorSpec("embedding", (sizes.vocabulary, sizes.hidden)),
            "output_norm.weight": TensorSpec("final_norm", (sizes.hidden,)),
        }
        if self.rope_factors:
            tensors["rope_freqs.weight"] = TensorSpec("rope_factors", (sizes.head_dim // 2,), optional=True)
        for layer in range(sizes.layers):
            for name, role, shape in self._layer(sizes):
                tensors[f"blk.{layer}.{name}"] = TensorSpec(role, shape, layer)
        return tensors

    def _layer(self, sizes: Sizes) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(name, role, shape) of each tensor of a layer."""
        hidden, inner = sizes.hidden, sizes.intermediate
        queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        yield "attn_norm.weight", "attention_norm", (hidden,)
        yield "ffn_norm.weight", "feed_forward_norm", (hidden,)
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"attn_{part}.weight", part, (rows, hidden)
            if self.qkv_bias:
                yield f"attn_{part}.bias", f"{part}_bias", (rows,)
            if self.qk_norm and part != "v":
                yield f"attn_{part}_norm.weight", f"{part}_norm", (sizes.head_dim,)
        yield "attn_output.weight", "o", (hidden, queries)
        yield "ffn_gate.weight", "gate", (inner, hidden)
        yield "ffn_up.weight", "up", (inner, hidden)
        yield "ffn_down.weight", "down", (hidden, inner)


_KEYS = (
    Key("block_count", int, "layers"),
    Key("context_length", int),
    Key("embedding_length", int, "hidden"),
    Key("feed_forward_length", int, "intermediate"),
    Key("attention.head_count", int, "heads"),
    Key("attention.head_count_kv", int, "kv_heads"),
    Key("attention.key_length", int, "head_dim"),
    Key("attention.value_length", int, "head_dim"),
    Key("rope.freq_base", float),
    Key("attention.layer_norm_rms_epsilon", float),
    Key("vocab_size", int, "vocabulary"),
)
LAYOUTS = {
    "qwen2": Layout("qwen2", qkv_bias=True),
    "qwen3": Layout("qwen3", qk_norm=True),
    "llama": Layout("llama", interleaved_rope=True, rope_factors=True),
    "mistral": Layout("llama", interleaved_rope=True, rope_factors=True),
}
"""model_type of a manifest or config.json -> layout of its GGUF file."""


def layout_of(model_type: str) -> Layout:
    """The layout of a model family; ValueError for a family that no GGUF bundle is written of."""
    if model_type not in LAYOUTS:
        raise ValueError(f"model_type {model_type!r} has no GGUF layout; known are {', '.join(LAYOUTS)}")
    return LAYOUTS[model_type]


GENERAL_KEYS: dict[str, type] = {
    "general.name": str,
    "edge_prm.version": str,
    "edge_prm.source.sha256": str,
    "edge_prm.rotated": bool,
    "edge_prm.head": str,
}
"""Keys of every file, besides `general.architecture` and those of its layout."""
HEAD_KEYS: dict[str, type] = {
    "edge_prm.head.row": int,
    "edge_prm.head.residual_row": int,
    "edge_prm.head.scale": float,
    "edge_prm.head.bias": float,
}
"""Keys of a head that is in rows of the embedding."""
QUANTIZER_KEYS: dict[str, type] = {"general.quantization_version": int, "general.file_type": int}
"""Keys that llama.cpp's quantizer adds."""

MODEL_KEY, PRE_KEY = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TOKEN_TYPES, MERGES, SCORES = (
    f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "scores")
)
PRE_TOKENIZERS = ("qwen2", "llama-bpe", "tekken")
"""Values of `tokenizer.ggml.pre` that the exporter writes, for `gpt2` only."""
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "gpt2": (TOKENS, TOKEN_TYPES, MERGES),
    "llama": (TOKENS, TOKEN_TYPES, SCORES),
    "none": (),
}
"""Value of `tokenizer.ggml.model` -> its lists: byte-level BPE, SentencePiece, and a model without a vocabulary."""
BOS_KEY, EOS_KEY, UNKNOWN_KEY = (f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown"))
TOKEN_ID_KEYS = (BOS_KEY, EOS_KEY, UNKNOWN_KEY)
ADD_BOS_KEY, ADD_PREFIX_KEY = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"
VOCABULARY_FLAGS = (ADD_BOS_KEY, ADD_PREFIX_KEY)
