"""Tiny random checkpoints in the file layouts of the real ones, written without torch.

Every byte is ours: safetensors and torch's zip format are written by hand, so that the readers under test are checked
against the formats and not against themselves.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_tokenizers import SPECIAL_TOKENS as SPECIAL_TOKENS
from tiny_tokenizers import write_llama3_tokenizer, write_sentencepiece_tokenizer, write_tokenizer

from edge_prm_export.checkpoint.files import Checkpoint, open_checkpoint

DEFAULT_SYSTEM_PROMPT = "You judge the steps of a solution."
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM_PROMPT + "<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint of a family: what its config has other than Qwen2's, and its tokenizer.

    `first_token`: what the tokenizer puts in front of every text.
    """

    architecture: str
    config: Mapping[str, Any]
    write_tokenizer: Callable[[Path], Path] = write_tokenizer
    first_token: str | None = None


FAMILIES = {
    "qwen2": Family("Qwen2", {"model_type": "qwen2", "use_sliding_window": False}),
    "qwen3": Family(
        "Qwen3", {"model_type": "qwen3", "use_sliding_window": False, "head_dim": 32, "attention_bias": False}
    ),
    "llama": Family("Llama", {"model_type": "llama"}, write_sentencepiece_tokenizer, "<s>"),
    "llama3": Family(
        "Llama",
        {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": LLAMA3_SCALING},
        write_llama3_tokenizer,
        "<|begin_of_text|>",
    ),
    "mistral": Family(
        "Mistral",
        {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
        write_sentencepiece_tokenizer,
        "<s>",
    ),
}
"""Rows of the tests of model families. Heads of 32 values make attention wider than `hidden`."""


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write u64 header length, JSON header, tensors; dtypes float32, float16 and (ml_dtypes) bfloat16."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, values in tensors.items():
        entry = {"dtype": names[values.dtype.name], "shape": list(values.shape)}
        header[name] = entry | {"data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())


def write_torch_zip(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """The zip of torch.save: a pickle, and the bytes of the storages that it names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_reward_head(path: Path, weight: np.ndarray, bias: np.ndarray | None, *, metadata: bool = True) -> Path:
    """Write what `torch.save(Linear(hidden, 1).state_dict(), path)` does, the `_metadata` attribute included."""
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    items = b"".join(
        pickled_str(name) + pickled_tensor(str(key), values.size, values.shape)
        for key, (name, values) in enumerate(tensors.items())
    )
    state = _ORDERED_DICT + b"(" + items + b"u"
    if metadata:  # {"_metadata": OrderedDict({"": {"version": 1}})}, set as the dict's own attributes by BUILD
        version = b"}" + pickled_str("version") + b"K\x01s"
        state += b"}" + pickled_str("_metadata") + _ORDERED_DICT + pickled_str("") + version + b"s" + b"s" + b"b"
    storages = {str(key): np.ascontiguousarray(v, dtype="<f4").tobytes() for key, v in enumerate(tensors.values())}
    return write_torch_zip(path, b"\x80\x02" + state + b".", storages)


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def pickled_str(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def pickled_ints(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in numbers) + b"t"


def pickled_storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """A persistent id as torch writes it: ('storage', torch.FloatStorage, key, 'cpu', count)."""
    size = b"J" + struct.pack("<i", count)
    return b"(" + pickled_str("storage") + b"ctorch\n" + kind.encode() + b"\n" + pickled_str(key) + pickled_str("cpu") \
        + size + b"tQ"  # fmt: skip


def pickled_tensor(
    key: str, count: int, size: Sequence[int], stride: Sequence[int] | None = None, offset: int = 0
) -> bytes:
    """A call of torch._utils._rebuild_tensor_v2 over a float32 storage; contiguous unless `stride` says otherwise."""
    if stride is None:
        stride = [int(np.prod(size[axis + 1 :])) for axis in range(len(size))]
    place = b"J" + struct.pack("<i", offset)
    arguments = pickled_storage(key, count) + place + pickled_ints(size) + pickled_ints(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89" + _ORDERED_DICT + b"tR"


def random_tensors(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """A decoder with weights at a scale where every part of it matters to the outcome."""
    rng = np.random.default_rng(seed)
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    width, head_dim = config["intermediate_size"], config.get("head_dim") or hidden // heads

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(size: int = hidden) -> np.ndarray:
        return 1 + normal(size, scale=0.2)

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, scale=0.3)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for kind, outputs in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            sharp = 1.0 if kind == "v" else 2.0  # queries and keys that look at few tokens, not at all alike
            tensors[f"{prefix}.self_attn.{kind}_proj.weight"] = normal(outputs, hidden, scale=sharp * hidden**-0.5)
            if config["model_type"] == "qwen2":
                tensors[f"{prefix}.self_attn.{kind}_proj.bias"] = normal(outputs, scale=0.3)
            if config["model_type"] == "qwen3" and kind != "v":
                tensors[f"{prefix}.self_attn.{kind}_norm.weight"] = 1 + norm(head_dim)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = normal(hidden, heads * head_dim, scale=hidden**-0.5)
        for kind in ("gate", "up"):
            tensors[f"{prefix}.mlp.{kind}_proj.weight"] = normal(width, hidden, scale=hidden**-0.5)
        tensors[f"{prefix}.mlp.down_proj.weight"] = normal(hidden, width, scale=width**-0.5)
        tensors[f"{prefix}.input_layernorm.weight"] = norm()
        tensors[f"{prefix}.post_attention_layernorm.weight"] = norm()
    tensors["model.norm.weight"] = norm()
    return tensors


def write_checkpoint(
    folder: Path,
    tokenizer_file: Path,
    head: str = "sigmoid",
    dtype: str = "bf16",
    shards: int = 1,
    *,
    family: str = "qwen2",
    tied: bool = True,
    seed: int = 0,
    drop: Sequence[str] = (),
    replace: Mapping[str, np.ndarray] | None = None,
    **overrides: Any,
) -> Path:
    """Write a checkpoint folder and return it.

    `head`: sigmoid, two_class, token_class, or none. `family`: a row of FAMILIES, whose tokenizer the caller gives.
    `drop` leaves tensors out, `replace` puts others in their place,
    `overrides` go to config.json.
    """
    import ml_dtypes

    folder.mkdir(parents=True, exist_ok=True)
    tokens = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    size = len(tokens["model"]["vocab"]) + len(tokens["added_tokens"])
    row = FAMILIES[family]
    config: dict[str, Any] = {
        "architectures": [f"{row.architecture}ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "vocab_size": -(-size // 64) * 64,
        **row.config,
    } | overrides
    rng = np.random.default_rng(seed + 1)
    hidden = config["hidden_size"]

    def linear(outputs: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((outputs, hidden)) * scale / hidden**0.5).astype(np.float32)

    tensors = random_tensors(config, seed)
    if not tied:
        tensors["lm_head.weight"] = linear(config["vocab_size"], 1.0)
    if head == "sigmoid":
        write_reward_head(folder / "reward_head.pt", linear(1, 1.5), np.array([0.1], dtype=np.float32))
    elif head == "two_class":
        config["architectures"], config["num_labels"] = [f"{row.architecture}ForProcessRewardModel"], 2
        tensors |= {"score.0.weight": linear(hidden, 1.0), "score.0.bias": linear(1, 1.0)[0]}
        tensors |= {"score.2.weight": linear(2, 1.5), "score.2.bias": np.array([0.1, -0.1], dtype=np.float32)}
    elif head == "token_class":
        config["architectures"], config["num_labels"] = [f"{row.architecture}ForTokenClassification"], 2
        tensors |= {"score.weight": linear(2, 1.1), "score.bias": np.array([-0.1, 0.1], dtype=np.float32)}
    kind = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    tensors = {name: values.astype(kind) for name, values in tensors.items() if name not in drop}
    tensors |= replace or {}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
        for file in set(files.values()):
            write_safetensors(folder / file, {name: tensors[name] for name in tensors if files[name] == file})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": row.first_token, "eos_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE})
    )
    return folder


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


def set_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not KeyError}))
    return folder
