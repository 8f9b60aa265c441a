"""Export a Llama-shaped 8B with random weights, cut to a few layers, and report the peak memory and the time.

    python benchmarks/large_export.py --folder /tmp/large [--layers 8] [--recipe int8]

The checkpoint is written without torch: bf16 safetensors of 1.7 GB (embedding and head) plus 0.44 GB for each layer. It
is kept in `--folder`, so that a second run starts with the export. Progress goes to stderr; the last line of stdout is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import edge_prm.demo

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 4096, 14336, 32, 8, 128, 128256
SEED = 20241214
_ROWS = 4096  # written at a time

_EXPORT = """
import json, resource, sys, time
from edge_prm_export import export
start = time.perf_counter()
folder = export(sys.argv[1], sys.argv[2], recipe=sys.argv[3], gguf=sys.argv[4] == "gguf", force=True)
unit = 1 if sys.platform == "darwin" else 1024
status = [line for line in open("/proc/self/status")] if sys.platform == "linux" else []
high = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")]
peak = high[0] if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
assert not {"torch", "transformers"} & set(sys.modules), "the export imported torch"
print(json.dumps({"seconds": time.perf_counter() - start, "peak_gb": peak / 1e9}))
"""


def tensor_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LlamaForTokenClassification of so many layers."""
    width, shared = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (width, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (shared, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (shared, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, width),
            f"{prefix}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    return shapes | {"model.norm.weight": (HIDDEN,), "score.weight": (2, HIDDEN), "score.bias": (2,)}


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write random bf16 weights as one safetensors file, a few thousand rows at a time."""
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = np.random.default_rng(SEED)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            print(f"writing {name}", file=sys.stderr)
            for start in range(0, shape[0], _ROWS):
                rows = (min(_ROWS, shape[0] - start), *shape[1:])
                values = generator.standard_normal(rows, dtype=np.float32)
                values = 1 + 0.1 * values if "norm" in name else values * np.float32(shape[-1] ** -0.5)
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write config, tokenizer (the embedded demo's) and weights; an unfinished earlier file is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForTokenClassification"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 4096,
        },
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "num_labels": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = edge_prm.demo.folder("demo") / name
        if source.exists():
            shutil.copy(source, folder / name)
    weights = folder / "model.safetensors"
    if not weights.exists():
        unfinished = folder / "model.safetensors.part"
        write_weights(unfinished, tensor_shapes(layers))
        unfinished.rename(weights)


def main() -> None:
    """Write the checkpoint where it is missing, export it in a process of its own, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--gguf", action="store_true")
    options = parser.parse_args()
    checkpoint = options.folder / f"llama-8b-{options.layers}-layers"
    start = time.perf_counter()
    write_checkpoint(checkpoint, options.layers)
    written = time.perf_counter() - start
    kind = "gguf" if options.gguf else "onnx"
    target = options.folder / f"{checkpoint.name}-{kind}-{options.recipe}"
    done = subprocess.run(
        [sys.executable, "-c", _EXPORT, str(checkpoint), str(target), options.recipe, kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    print(json.dumps({"layers": options.layers, "written_s": written, **facts, "bundle_gb": size}))


if __name__ == "__main__":
    main()
