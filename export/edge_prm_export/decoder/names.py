"""The tensors of a decoder by role: their names, their shapes, and which of them a spec has.

Names are those of transformers, which all families share. `check_decoder` compares a checkpoint's names with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from edge_prm.errors import CheckpointError
from edge_prm_export.checkpoint.config import DecoderSpec
from edge_prm_export.checkpoint.prefix import BARE, PREFIX
from edge_prm_export.decoder.source import TensorSource

EMBEDDING = "embedding"
FINAL_NORM = "final_norm"
_MODEL = {
    EMBEDDING: ("model.embed_tokens.weight", ("vocabulary", "hidden")),
    FINAL_NORM: ("model.norm.weight", ("hidden",)),
}
"""role -> name, and the sizes that are its shape (see `_size`)."""
_LAYER = {
    "attention_norm": ("input_layernorm.weight", ("hidden",)),
    "feed_forward_norm": ("post_attention_layernorm.weight", ("hidden",)),
    "q": ("self_attn.q_proj.weight", ("query_width", "hidden")),
    "q_bias": ("self_attn.q_proj.bias", ("query_width",)),
    "k": ("self_attn.k_proj.weight", ("key_width", "hidden")),
    "k_bias": ("self_attn.k_proj.bias", ("key_width",)),
    "v": ("self_attn.v_proj.weight", ("key_width", "hidden")),
    "v_bias": ("self_attn.v_proj.bias", ("key_width",)),
    "q_norm": ("self_attn.q_norm.weight", ("head_dim",)),
    "k_norm": ("self_attn.k_norm.weight", ("head_dim",)),
    "o": ("self_attn.o_proj.weight", ("hidden", "query_width")),
    "gate": ("mlp.gate_proj.weight", ("intermediate", "hidden")),
    "up": ("mlp.up_proj.weight", ("intermediate", "hidden")),
    "down": ("mlp.down_proj.weight", ("hidden", "intermediate")),
}
"""role -> name within its layer, and the sizes that are its shape."""
_BIASES = {"q_bias", "k_bias", "v_bias"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tables that old versions of transformers saved, and that follow from config.json."""
_QUANTIZED = re.compile(r"\.(qweight|qzeros|g_idx|scales|weight_scale\w*|weight_packed|absmax|quant_state\S*|SCB)$")
_MAX_NAMED = 3


def layer_roles(spec: DecoderSpec) -> tuple[str, ...]:
    """Roles of the tensors that each layer of a spec has, in a fixed order."""
    absent = (set() if spec.qkv_bias else _BIASES) | (set() if spec.qk_norm else _HEAD_NORMS)
    return tuple(role for role in _LAYER if role not in absent)


def tensor_name(role: str, layer: int | None = None) -> str:
    """The name of a tensor: of a role of a layer, or (without `layer`) of `EMBEDDING` or `FINAL_NORM`."""
    return _MODEL[role][0] if layer is None else f"model.layers.{layer}.{_LAYER[role][0]}"


def tensor_shape(spec: DecoderSpec, role: str) -> tuple[int, ...]:
    """The shape of a role's tensor as transformers stores it: of a linear layer, `[out, in]`."""
    _, sizes = _LAYER[role] if role in _LAYER else _MODEL[role]
    return tuple(int(getattr(spec.shapes, size)) for size in sizes)


def decoder_names(spec: DecoderSpec) -> Iterator[str]:
    """Names of all tensors that a decoder is computed from."""
    yield tensor_name(EMBEDDING)
    for layer in range(spec.shapes.layers):
        yield from (tensor_name(role, layer) for role in layer_roles(spec))
    yield tensor_name(FINAL_NORM)


def check_decoder(source: TensorSource) -> None:
    """CheckpointError unless exactly the tensors of the source's decoder are there, in dtypes that are read.

    The message names the first tensors that are missing, or that an export would leave out. Names and dtypes only:
    shapes are checked when a tensor is read.
    """
    check_names(source.tensor_names, source.spec, source.name)
    for name in decoder_names(source.spec):
        source.check_dtype(name)


def check_names(names: Iterable[str], spec: DecoderSpec, source: str) -> None:
    """CheckpointError unless `names` has all tensors of a decoder, and no others under its prefix."""
    present = set(names)
    if embedding := _elsewhere(present):
        prefix = embedding.removesuffix("embed_tokens.weight")
        raise CheckpointError(
            f"checkpoint {source}: its weights are named {prefix}..., where {PREFIX}... is read; save the inner model "
            "with save_pretrained, or rename the tensors"
        )
    needed = list(decoder_names(spec))
    surplus = sorted(
        name
        for name in present - set(needed)
        if name.startswith((PREFIX, *BARE)) and not _COMPUTED.fullmatch(name)
    )  # fmt: skip
    if quantized := next((name for name in surplus if _QUANTIZED.search(name)), None):
        raise CheckpointError(
            f"checkpoint {source} is quantized (tensor {quantized}); an export quantizes by itself: give the original "
            "checkpoint in fp32, fp16 or bf16"
        )
    if missing := [name for name in needed if name not in present]:
        raise CheckpointError(
            f"checkpoint {source}: tensor {_first(missing)} is missing from its safetensors files; "
            "download it again, or save it again from the model that was trained"
        )
    if surplus:
        raise CheckpointError(
            f"checkpoint {source} holds {_first(surplus)}, which a {spec.family} decoder of {spec.shapes.layers} "
            "layers does not use; an export would leave it out and give other rewards: correct config.json or the "
            "weights"
        )


def _elsewhere(present: set[str]) -> str | None:
    """The name of the embedding under another prefix, where the usual one is absent."""
    if tensor_name(EMBEDDING) in present:
        return None
    return min((name for name in present if name.endswith(".embed_tokens.weight")), key=len, default=None)


def _first(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
