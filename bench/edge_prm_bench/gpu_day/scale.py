"""How large a run is: the shapes of the checkpoint, the recipes, and the texts that are timed."""

from __future__ import annotations

from dataclasses import dataclass

from edge_prm_bench.speed.latency import LENGTHS

CPU = "cpu"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2 decoder, in the words of its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Scale:
    """A size of run. `lengths`: tokens of the texts that are timed on the device, and `cpu_lengths` of those that are
    timed on a CPU for comparison; `runs` of each. `memory_tokens`: the text whose memory is measured."""

    name: str
    shape: Shape
    lengths: tuple[int, ...]
    cpu_lengths: tuple[int, ...]
    runs: int
    memory_tokens: int


FULL = Scale(
    "1.5b", Shape(1536, 28, 12, 2, 8960, 151_936, 32_768), LENGTHS, (128, 512, 2048), runs=10, memory_tokens=2048
)
"""The shapes of ReasonFlux-PRM-1.5B."""
TINY = Scale("tiny", Shape(128, 2, 4, 2, 384, 512, 2048), (32, 64), (32,), runs=2, memory_tokens=64)


@dataclass(frozen=True)
class Bundle:
    """A bundle of the run: its recipe, and the options of `edge-prm export` that give it. `compared`: it has no kernels
    on a GPU, and runs on the CPU for comparison."""

    recipe: str
    options: tuple[str, ...]
    compared: bool = False


_ON_CUDA = ("--device", "cuda")
BUNDLES = (
    Bundle("fp16", ("--fp16", *_ON_CUDA)),
    Bundle("w8a16", ("--int8", *_ON_CUDA)),
    Bundle("w4a16", ("--int4", *_ON_CUDA)),
    Bundle("int8", ("--int8",), compared=True),
    Bundle("int4", ("--int4",), compared=True),
)
"""In the order of their export: what a GPU runs comes first."""
ATTENTIONS = ("eager", "sdpa")
"""Implementations of attention in transformers that are timed beside the bundles."""
