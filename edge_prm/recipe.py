"""Recipes and engines: one table of each.

A recipe says how a bundle holds its weights, and what follows from that: precision, devices, tolerances, extras. It is
stored in the manifest as data, so a bundle of a recipe that this version does not list still runs on an engine that it
knows. A new recipe is one row of RECIPES; a new engine is one row of ENGINES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FULL_BITS = 32


@dataclass(frozen=True)
class Engine:
    """What all bundles of an engine share.

    `module` has `load_model(bundle, options)`. `files` are those that every bundle must list, since a file that is not
    listed is never verified. `finer`: (tolerance of full precision, options of `edge-prm export`) of recipes that a
    message may recommend in place of a coarser one.
    """

    module: str
    files: tuple[str, ...]
    finer: tuple[tuple[float, str], ...]


_ONNX_FILES = ("tokenizer.json", "model.onnx", "model.onnx.data")
_FLOATS = (0.02, "--gguf --fp16 or --fp32")
ENGINES: dict[str, Engine] = {
    "onnx": Engine("edge_prm.backends.onnx.native", _ONNX_FILES, (_FLOATS,)),
    "gguf": Engine("edge_prm.backends.gguf.model", ("tokenizer.json", "model.gguf"), ((0.06, "--gguf"), _FLOATS)),
    "optimum": Engine("edge_prm.backends.onnx.traced", _ONNX_FILES, ((1e-3, "--fp32"),)),
}


@dataclass(frozen=True)
class Weights:
    """How the weights of linear layers are held.

    `bits` of a weight, block scales included. `group`: how many weights of a row share a scale; 0 where a complete row
    does, or where weights are floating point. `reduce_range`: integers of 7 bits in place of 8, for processors whose
    8-bit kernels saturate. `rotated`: whether the residual stream is rotated before quantization. `wide`: linear layers
    that have 8 bits where most have fewer, by their names in the graph.
    """

    bits: float
    group: int = 0
    reduce_range: bool = False
    rotated: bool = False
    wide: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tolerances:
    """Largest absolute differences of a golden reward that count as right, on any device but where one is named.

    `full_precision`: from the full-precision reward. Several times what the rounding of the recipe gives, far below
    what saturating or broken kernels give. `incremental`: max abs(incremental - full), of a trajectory that is scored
    step by step from the same one in one run. Above zero where an engine multiplies runs of different lengths with
    different kernels: a last bit that differs can flip an 8-bit rounding after it. `incremental_cpu`: the same on a
    CPU, where it is less there than on the recipe's other devices; None where it is not.
    """

    full_precision: float
    incremental: float = 0.0
    incremental_cpu: float | None = None

    def incremental_on(self, device: str) -> float:
        """The incremental tolerance on a device: `cpu`, or any other name."""
        if device == "cpu" and self.incremental_cpu is not None:
            return self.incremental_cpu
        return self.incremental


@dataclass(frozen=True)
class Recipe:
    """How a bundle holds its weights, and what an engine does with them.

    `name` is that of a row in RECIPES; of a GGUF bundle, the ggml type in lower case. `activations` is the type that
    they have when they are multiplied, `kv_dtype` the type of keys and values in the cache. `devices` are those that
    the engine can run it on, `extras` the extras of edge-prm that running it needs.
    """

    name: str
    engine: str
    weights: Weights
    activations: str
    kv_dtype: str
    devices: tuple[str, ...]
    tolerances: Tolerances
    extras: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Bits of a weight, block scales included."""
        return self.weights.bits

    @property
    def reduce_range(self) -> bool:
        """Whether 8-bit weights use 7 of their bits."""
        return self.weights.reduce_range

    @property
    def rotated(self) -> bool:
        """Whether the residual stream is rotated."""
        return self.weights.rotated

    @property
    def full_precision(self) -> bool:
        """Whether no weight is rounded."""
        return self.bits >= FULL_BITS

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded, the KV cache included: outside its tolerance, such a bundle is a wrong graph."""
        return self.full_precision and self.kv_dtype == "fp32"

    @property
    def saturates(self) -> bool:
        """Whether 8-bit kernels without VNNI or dot product saturate with it: uint8 activations, int8 weights."""
        return self.activations == "uint8" and self.bits <= 8 and not self.reduce_range

    @property
    def reducible(self) -> bool:
        """Whether the recipe has 8-bit weights whose range can be reduced."""
        return self.activations == "uint8"

    @property
    def label(self) -> str:
        """The name with what is special about it, for tables: `int8 reduced`."""
        return self.name + (" reduced" if self.reduce_range else "")

    def with_weights(
        self, *, reduce_range: bool | None = None, rotated: bool | None = None, wide: tuple[str, ...] | None = None
    ) -> Recipe:
        """The same recipe with other choices of an export; None leaves one as it is."""
        changes: dict[str, Any] = {"reduce_range": reduce_range, "rotated": rotated, "wide": wide}
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, weights=replace(self.weights, **given))

    def with_tolerances(self, full_precision: float, incremental: float) -> Recipe:
        """The same recipe with other tolerances."""
        return replace(
            self, tolerances=replace(self.tolerances, full_precision=full_precision, incremental=incremental)
        )


def _onnx(name: str, bits: float, tolerance: float, rotated: bool = False) -> Recipe:
    activations = "uint8" if bits == 8 else "fp32"
    weights = Weights(bits, rotated=rotated)
    return Recipe(name, "onnx", weights, activations, "fp32", ("cpu",), Tolerances(tolerance), ("cpu",))


def _weight_only(name: str, bits: float, tolerance: float, group: int = 0) -> Recipe:
    """fp16 activations, for GPUs. CUDA's kernels depend on a run's length, and their incremental tolerance is not
    measured yet; on a CPU the bits are equal in any pieces."""
    weights, tolerances = Weights(bits, group, rotated=True), Tolerances(tolerance, 0.02, incremental_cpu=0.0)
    return Recipe(name, "onnx", weights, "fp16", "fp16", ("cpu", "cuda"), tolerances, ("cpu",))


def _optimum(name: str, bits: float, tolerance: float) -> Recipe:
    return replace(_onnx(name, bits, tolerance), engine="optimum", tolerances=Tolerances(tolerance, 0.02))


def _gguf(name: str, bits: float, tolerance: float, group: int = 0, activations: str = "int8") -> Recipe:
    """llama.cpp keeps keys and values in fp16, even of F32 weights."""
    devices, tolerances = ("cpu", "gpu"), Tolerances(tolerance, 0.02)
    return Recipe(name, "gguf", Weights(bits, group), activations, "fp16", devices, tolerances, ("gguf",))


RECIPES: Mapping[tuple[str, str], Recipe] = {
    (recipe.engine, recipe.name): recipe
    for recipe in (
        _onnx("int8", 8, 0.06, rotated=True),
        _onnx("fp32", 32, 1e-3),
        _weight_only("fp16", 16, 0.02),
        _weight_only("w8a16", 8.5, 0.03, 32),
        _weight_only("w4a16", 5.4, 0.25, 32),
        Recipe(
            "int4", "onnx", Weights(5.4, 32, rotated=True), "int8", "fp32", ("cpu",), Tolerances(0.25), ("cpu",)
        ),  # activations are rounded to 8 bits in blocks, where they are multiplied
        _optimum("int8", 8, 0.12),  # coarser: no rotation of the residual stream, no GPTQ
        _optimum("fp32", 32, 1e-3),
        _gguf("f32", 32, 0.02, activations="fp32"),
        _gguf("f16", 16, 0.02, activations="fp16"),
        _gguf("bf16", 16, 0.06, activations="bf16"),
        _gguf("q8_0", 8.5, 0.06, 32),
        _gguf("q6_k", 6.6, 0.10, 16),
        _gguf("q5_k_m", 5.7, 0.15, 32),
        _gguf("q5_k_s", 5.5, 0.15, 32),
        _gguf("q5_1", 6.0, 0.15, 32),
        _gguf("q5_0", 5.5, 0.15, 32),
        _gguf("q4_k_m", 4.9, 0.25, 32),
        _gguf("q4_k_s", 4.6, 0.25, 32),
        _gguf("q4_1", 5.0, 0.25, 32),
        _gguf("q4_0", 4.5, 0.25, 32),
        _gguf("iq4_nl", 4.5, 0.25, 32),
        _gguf("iq4_xs", 4.3, 0.25, 32),
        _gguf("q3_k_l", 4.3, 0.40, 16),
        _gguf("q3_k_m", 3.9, 0.40, 16),
        _gguf("q3_k_s", 3.5, 0.40, 16),
        _gguf("q2_k", 3.2, 0.60, 16),
    )
}
"""(engine, name) -> recipe, as an export begins with it."""
