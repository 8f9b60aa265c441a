"""A decoder's tensors as GGUF stores them: by the layout's roles, in llama.cpp's order of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.backends.gguf.layout import Layout, TensorSpec, layout_of
from edge_prm.errors import UnsupportedArchitectureError
from edge_prm_export.checkpoint.config import DecoderSpec
from edge_prm_export.decoder.layers import LayerWeights, Linear
from edge_prm_export.decoder.rope import rope_factors
from edge_prm_export.decoder.transformed import TransformedDecoder

_ROTARY = ("q", "k")


class GgufTensors:
    """The tensors of a decoder; values are read when they are needed."""

    def __init__(self, decoder: TransformedDecoder) -> None:
        self.decoder = decoder
        self.layout = layout_of(decoder.spec.family)
        self._factors = rope_factors(decoder.spec.rope, decoder.shapes.head_dim)
        self._current: tuple[int, LayerWeights] | None = None

    def specs(self) -> dict[str, TensorSpec]:
        """name -> tensor, in the order of the file."""
        listed = self.layout.tensors(self.decoder.shapes)
        return {name: spec for name, spec in listed.items() if not spec.optional or self._factors is not None}

    def value(self, spec: TensorSpec) -> AnyFloat:
        """The values of a tensor of `spec.shape`, float32; the embedding comes in blocks and not from here."""
        if spec.role == "final_norm":  # its weight is folded into the head
            return np.ones(spec.shape, dtype=np.float32)
        if spec.role == "rope_factors":
            return np.asarray(self._factors, dtype=np.float32)
        assert spec.layer is not None
        layer = self._layer(spec.layer)
        if spec.role.endswith("_norm"):
            norm: AnyFloat = getattr(layer.norms, spec.role.removesuffix("_norm"))
            return norm
        part = spec.role.removesuffix("_bias")
        linear: Linear = getattr(layer, part)
        values: Any = linear.bias() if spec.role.endswith("_bias") else linear.weight()
        return self._interleaved(values, part) if part in _ROTARY and self.layout.interleaved_rope else values

    def _interleaved(self, values: AnyFloat, part: str) -> AnyFloat:
        """Rows of q or k with the two halves of each head interleaved.

        llama.cpp's `llama` rotates neighbours (x[2i], x[2i + 1]) where transformers rotates (x[i], x[i + d/2]). Norms,
        scales and quantization work on rows or columns, so this comes after all of them.
        """
        shapes = self.decoder.shapes
        heads = shapes.heads if part == "q" else shapes.kv_heads
        halves = values.reshape(heads, 2, shapes.head_dim // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)

    def _layer(self, index: int) -> LayerWeights:
        if self._current is None or self._current[0] != index:
            self._current = index, self.decoder.layer(index)
        return self._current[1]


def check_layout(spec: DecoderSpec, source: str) -> Layout:
    """The GGUF layout of a decoder; UnsupportedArchitectureError for one that llama.cpp would compute differently."""
    try:
        layout = layout_of(spec.family)
    except ValueError as error:
        raise UnsupportedArchitectureError(source, str(error), "the others as ONNX") from None
    if (layout.qkv_bias, layout.qk_norm) != (spec.qkv_bias, spec.qk_norm):
        raise UnsupportedArchitectureError(source, f"this {spec.family} decoder as GGUF", "it as ONNX")
    if spec.rope.scaling is not None and not layout.rope_factors:
        raise UnsupportedArchitectureError(source, f"scaled rotary embeddings of {spec.family} in GGUF", "them as ONNX")
    return layout
