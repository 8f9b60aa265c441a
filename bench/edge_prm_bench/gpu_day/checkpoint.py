"""A checkpoint with random weights in the shapes of a real one, in seconds: for speed, and for parity with torch.

Its rewards mean nothing. It has TRL's head (two rows in the safetensors file) and the tokenizer of the embedded demo,
whose ids all lie in the vocabulary.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edge_prm.demo import folder as demo_folder
from edge_prm_bench.gpu_day.scale import FULL, TINY, Scale, Shape
from edge_prm_bench.speed.report_line import report_figures

SEED = 20_251_125
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_BLOCK = 1 << 24  # values that are made at once
_RMS = 7.04
"""Root mean square of `_random_bits` with base exponent 0: that of (1 + u) * 2^e, u uniform in [0, 1), e in 0..3."""


def write_checkpoint(folder: Path, scale: Scale) -> dict[str, Any]:
    """Write the checkpoint in bf16, complete or not at all; return its `parameters` and `bytes`."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parameters = _write_weights(partial / "model.safetensors", scale.shape)
    (partial / "config.json").write_text(json.dumps(_config(scale.shape), indent=2), encoding="utf-8")
    for name in _TOKENIZER:
        shutil.copyfile(demo_folder("demo") / name, partial / name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return {"parameters": parameters, "bytes": (folder / "model.safetensors").stat().st_size}


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForTokenClassification"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "num_labels": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **asdict(shape),
    }


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and scale of every tensor; a scale of 0 means a norm, whose values are around 1.

    What a layer adds to the residual stream is divided by the square root of their number, as GPT-2 is initialized:
    then every layer counts, and rounding does not grow from layer to layer.
    """
    hidden, wide = shape.hidden_size, shape.intermediate_size
    keys = hidden // shape.num_attention_heads * shape.num_key_value_heads
    added = (2 * shape.num_hidden_layers) ** -0.5
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden), 1.0
    for layer in range(shape.num_hidden_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        for name, outputs in (("q", hidden), ("k", keys), ("v", keys)):
            yield f"{attention}.{name}_proj.weight", (outputs, hidden), hidden**-0.5
            yield f"{attention}.{name}_proj.bias", (outputs,), 0.3
        yield f"{attention}.o_proj.weight", (hidden, hidden), added * hidden**-0.5
        yield f"{mlp}.gate_proj.weight", (wide, hidden), hidden**-0.5
        yield f"{mlp}.up_proj.weight", (wide, hidden), hidden**-0.5
        yield f"{mlp}.down_proj.weight", (hidden, wide), added * wide**-0.5
        yield f"model.layers.{layer}.input_layernorm.weight", (hidden,), 0.0
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (hidden,), 0.0
    yield "model.norm.weight", (hidden,), 0.0
    yield "score.weight", (2, hidden), 1.5 * hidden**-0.5
    yield "score.bias", (2,), 0.1


def _write_weights(path: Path, shape: Shape) -> int:
    """Write a safetensors file: u64 length of the header, header as JSON, values. Returns the number of values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, sizes, _ in _tensors(shape):
        begin, end = end, end + 2 * int(np.prod(sizes))
        header[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(SEED)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, sizes, scale in _tensors(shape):
            _write_values(file, rng, int(np.prod(sizes)), scale)
    return end // 2


def _write_values(file: IO[bytes], rng: np.random.Generator, count: int, scale: float) -> None:
    if not scale:
        norm = (1 + 0.2 * rng.standard_normal(count)).astype("<f4").view("<u4") >> 16  # the upper half is bf16
        file.write(norm.astype("<u2").tobytes())
        return
    for start in range(0, count, _BLOCK):
        file.write(_random_bits(rng, min(_BLOCK, count - start), scale).tobytes())


def _random_bits(rng: np.random.Generator, count: int, scale: float) -> npt.NDArray[np.uint16]:
    """bf16 values of random sign, exponent (one of four) and mantissa, whose root mean square is `scale` within a
    factor of 1.42: random bits cost a tenth of normal values."""
    base = round(float(np.log2(scale / _RMS))) + 127
    bits = np.frombuffer(rng.bytes(2 * count), dtype="<u2")
    return (bits & np.uint16(0x8000)) | ((bits & np.uint16(0x01FF)) + np.uint16(base << 7))


def main(folder: str, scale: str) -> None:
    """Write the checkpoint, and report its size."""
    chosen = {known.name: known for known in (FULL, TINY)}[scale]
    report_figures({"checkpoint": lambda: write_checkpoint(Path(folder), chosen)}, ["checkpoint"])


if __name__ == "__main__":
    main(*sys.argv[1:3])
