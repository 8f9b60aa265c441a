"""What the benchmark needs to know of a bundle's recipe: the only module here that looks at recipes and engines."""

from __future__ import annotations

from edge_prm.manifest import Manifest

WEIGHT_BITS = {"fp32": 32, "f32": 32, "fp16": 16, "f16": 16, "bf16": 16}
"""Bits of a weight by recipe; every other recipe has fewer."""
FULL_BITS = 32


def has_full_weights(manifest: Manifest) -> bool:
    """Whether all weights are fp32."""
    return WEIGHT_BITS.get(manifest.recipe.name, 0) >= FULL_BITS


def rounds_cache(manifest: Manifest) -> bool:
    """Whether the engine keeps keys and values in fp16; llama.cpp does, even where weights are F32."""
    return manifest.backend == "gguf"


def can_use_gpu(manifest: Manifest) -> bool:
    """Whether the engine of the bundle can run on a GPU."""
    return manifest.backend == "gguf"


def multiplies_int8(manifest: Manifest) -> bool:
    """Whether the linear layers are 8-bit matrix multiplications of ONNX Runtime, the device's limit of which is
    measured."""
    return manifest.recipe.name == "int8"
