"""What stands in the head of our GGUF files: an ordinary qwen2 model's metadata, its tokens, and `edge_prm.*`.

`edge_prm.backends.gguf.checks` refuses files with any other field, so the two go together.
"""

from __future__ import annotations

import json
from typing import Any

import edge_prm
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import CheckpointError, UnsupportedArchitectureError
from edge_prm_export.checkpoint.files import Checkpoint

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's token types


def add_model(writer: Any, checkpoint: Checkpoint, *, rotated: bool) -> None:
    config = checkpoint.config
    writer.add_name(checkpoint.name)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(checkpoint.spec.rope.theta)
    writer.add_layer_norm_rms_eps(checkpoint.spec.eps)
    writer.add_vocab_size(config.vocabulary)
    writer.add_string("edge_prm.version", edge_prm.__version__)
    writer.add_string("edge_prm.source.sha256", checkpoint.sha256())
    writer.add_bool("edge_prm.rotated", rotated)


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """The checkpoint's byte-level BPE, for other tools; edge-prm itself tokenizes with tokenizer.json."""
    data = _tokenizer_json(checkpoint)
    known = vocabulary(checkpoint)
    special = {token["id"] for token in data.get("added_tokens", ()) if token.get("special")}
    added = {token["id"] for token in data.get("added_tokens", ())}
    tokens, types = [], []
    for id_ in range(checkpoint.config.vocabulary):
        tokens.append(known.get(id_, padding(id_)))
        types.append(
            _UNUSED if id_ not in known else _CONTROL if id_ in special else _USER_DEFINED if id_ in added else _NORMAL
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = data["model"].get("merges", [])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ends = [id_ for id_, token in known.items() if token in ("<|im_end|>", "<|endoftext|>")]
    if ends:
        writer.add_eos_token_id(min(ends))
    writer.add_add_bos_token(False)


def spare_rows(checkpoint: Checkpoint) -> list[int]:
    """Rows of the embedding that stand for no token. A tokenizer that went through GGUF lists them as padding."""
    known = vocabulary(checkpoint)
    return [row for row in range(checkpoint.config.vocabulary) if known.get(row, padding(row)) == padding(row)]


def padding(id_: int) -> str:
    """What llama.cpp's converters call a row without a token."""
    return f"[PAD{id_}]"


def vocabulary(checkpoint: Checkpoint) -> dict[int, str]:
    """id -> token of tokenizer.json, added tokens included."""
    data = _tokenizer_json(checkpoint)
    known = {int(id_): token for token, id_ in data["model"]["vocab"].items()}
    return known | {int(token["id"]): token["content"] for token in data.get("added_tokens", ())}


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """UnsupportedArchitectureError for a tokenizer that a GGUF file of this model cannot hold."""
    kind = _tokenizer_json(checkpoint)["model"].get("type", "BPE")
    if kind != "BPE":
        raise UnsupportedArchitectureError(
            checkpoint.name, f"a {kind} tokenizer in a GGUF file", "byte-level BPE there, others without --gguf"
        )


def _tokenizer_json(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        data = json.loads(checkpoint.file(TOKENIZER_NAME).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError(f"{checkpoint.folder / TOKENIZER_NAME} is not a tokenizer; download it again")
    return data
