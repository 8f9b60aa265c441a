"""The tensors of a Qwen2 decoder by name: which must be there, and which would be lost without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from edge_prm.errors import CheckpointError

PREFIX = "model."
BARE = ("embed_tokens.", "layers.", "norm.")
"""How the names of a decoder begin that was saved without the language model around it."""
_LAYER = (
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    "self_attn.o_proj.weight",
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
)
_COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tables that old versions of transformers saved, and that follow from config.json."""
_QUANTIZED = re.compile(r"\.(qweight|qzeros|g_idx|scales|weight_scale\w*|weight_packed|absmax|quant_state\S*|SCB)$")
_MOST_NAMED = 3


def decoder_names(layers: int) -> Iterator[str]:
    """Names of all tensors that a Qwen2 decoder of so many layers is computed from."""
    yield "model.embed_tokens.weight"
    for layer in range(layers):
        yield from (f"model.layers.{layer}.{name}" for name in _LAYER)
    yield "model.norm.weight"


def is_bare(names: Iterable[str]) -> bool:
    """Whether a decoder's names lack the prefix `model.`, and no other tensor has it."""
    found = set(names)
    return "embed_tokens.weight" in found and not any(name.startswith(PREFIX) for name in found)


def check_decoder(names: Iterable[str], layers: int, source: str) -> None:
    """CheckpointError that names the first tensors that are missing, or that an export would leave out."""
    found = set(names)
    if embedding := _elsewhere(found):
        prefix = embedding.removesuffix("embed_tokens.weight")
        raise CheckpointError(
            f"checkpoint {source}: its weights are named {prefix}..., where {PREFIX}... is read; save the inner model "
            "with save_pretrained, or rename the tensors"
        )
    needed = set(decoder_names(layers))
    surplus = sorted(
        name
        for name in found - needed
        if name.startswith((PREFIX, *BARE)) and not _COMPUTED.fullmatch(name)
    )  # fmt: skip
    if quantized := next((name for name in surplus if _QUANTIZED.search(name)), None):
        raise CheckpointError(
            f"checkpoint {source} is quantized (tensor {quantized}); an export quantizes by itself: give the original "
            "checkpoint in fp32, fp16 or bf16"
        )
    if missing := [name for name in decoder_names(layers) if name not in found]:
        raise CheckpointError(
            f"checkpoint {source}: tensor {_first(missing)} is missing from its safetensors files; "
            "download it again, or save it again from the model that was trained"
        )
    if surplus:
        raise CheckpointError(
            f"checkpoint {source} holds {_first(surplus)}, which a Qwen2 decoder of {layers} layers has no use for; "
            "an export would leave it out and give other rewards: correct config.json or the weights"
        )


def _elsewhere(found: set[str]) -> str | None:
    """The name of the embedding under another prefix, where the usual one is not there."""
    if "model.embed_tokens.weight" in found:
        return None
    return min((name for name in found if name.endswith(".embed_tokens.weight")), key=len, default=None)


def _first(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
