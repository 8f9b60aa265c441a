"""Write a tiny text generator for llama.cpp: `python tiny_generator.py tiny-generator.gguf`.

It is the lower part of the embedded checkpoint demo-reference, a judge of steps such as `3 * 4 = 12`. That judge was
also trained to predict the next token of a right derivation, from the hidden state two layers before its end (see
examples/train_demo). So its first three layers, with the embedding as the output layer, are a language model that
writes derivations, often with mistakes. The examples judge it with the other embedded checkpoint, demo: a judge that
has the layers of the generator would make the generator's mistakes.

This model is for the examples only. For anything else, give them a GGUF file of an instruct model.
"""

import json
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np

import edge_prm.demo

NAME = "edge-prm tiny generator"
LAYERS_TO_JUDGE = 2  # as in examples/train_demo/train_demo.py
STEP_TOKEN, STEP_SEPARATOR = "<extra_0>", "\n\n"
TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names in the checkpoint -> names in the GGUF file."""


def write_generator(path: str | Path) -> None:
    """Write the GGUF file: an ordinary qwen2 model of three layers, in float32."""
    checkpoint = edge_prm.demo.folder("demo-reference")
    config, tokenizer, tokenizer_config = (
        json.loads((checkpoint / name).read_text(encoding="utf-8"))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    )
    layers = config["num_hidden_layers"] - LAYERS_TO_JUDGE
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name(NAME)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_tokenizer(writer, tokenizer, config["vocab_size"])
    writer.add_chat_template(tokenizer_config["chat_template"])

    weights = read_safetensors(checkpoint / "model.safetensors")
    # Without an output.weight, llama.cpp uses the embedding as the output layer, as the training did.
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor(
        "output_norm.weight", np.ones(config["hidden_size"], np.float32)
    )  # the training had no weight here
    for layer in range(layers):
        for name, gguf_name in TENSORS.items():
            for part in ("weight", "bias"):
                if (tensor := weights.get(f"model.layers.{layer}.{name}.{part}")) is not None:
                    writer.add_tensor(f"blk.{layer}.{gguf_name}.{part}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, size: int) -> None:
    """Copy a byte-level BPE tokenizer.json; rows of the embedding without a token get a name too."""
    tokens = {number: f"[PAD{number}]" for number in range(size)}
    types = dict.fromkeys(tokens, gguf.TokenType.UNUSED)
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
        if added["content"] == STEP_TOKEN:  # the judge's mark between steps; a generator writes blank lines there
            tokens[added["id"]], types[added["id"]] = STEP_SEPARATOR, gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(list(tokens.values()))
    writer.add_token_types(list(types.values()))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(next(number for number, token in tokens.items() if token == "<|im_end|>"))
    writer.add_add_bos_token(False)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of bfloat16 tensors as float32, without torch."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    entries.pop("__metadata__", None)
    weights = {}
    for name, entry in entries.items():
        first, end = (start + offset for offset in entry["data_offsets"])
        weights[name] = np.frombuffer(data[first:end], ml_dtypes.bfloat16).reshape(entry["shape"]).astype(np.float32)
    return weights


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    write_generator(sys.argv[1])
    print(f"wrote {sys.argv[1]}, {Path(sys.argv[1]).stat().st_size / 1e6:.1f} MB")
