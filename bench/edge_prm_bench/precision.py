"""What the benchmark needs to know of a bundle's recipe: the only module here that looks at recipes and engines."""

from __future__ import annotations

from edge_prm.manifest import Manifest

_FULL_WEIGHTS = ("fp32", "f32")


def has_full_weights(manifest: Manifest) -> bool:
    """Whether all weights are fp32."""
    return manifest.recipe.name in _FULL_WEIGHTS


def is_exact(manifest: Manifest) -> bool:
    """Whether weights and KV cache are fp32; llama.cpp keeps the cache in fp16, even where weights are F32."""
    return has_full_weights(manifest) and not can_use_gpu(manifest)


def can_use_gpu(manifest: Manifest) -> bool:
    """Whether the engine of the bundle can run on a GPU."""
    return manifest.backend == "gguf"


def multiplies_int8(manifest: Manifest) -> bool:
    """Whether linear layers are 8-bit matrix multiplications of ONNX Runtime, as in the device's measured limit."""
    return manifest.recipe.name == "int8"


def recipe_label(manifest: Manifest) -> str:
    """The name of the recipe for tables, such as `int8 reduced`."""
    return manifest.recipe.name + (" reduced" if manifest.recipe.reduce_range else "")
