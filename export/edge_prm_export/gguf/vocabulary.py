"""tokenizer.json -> the vocabulary of a GGUF file, for other tools; edge-prm itself tokenizes with tokenizer.json.

A file claims a vocabulary only where llama.cpp gives a text the same tokens: byte-level BPE with a regular expression
that it knows, or BPE over characters with byte fallback, as SentencePiece's. Any other BPE tokenizer is left out
(`none`): then other tools take token ids only. What llama.cpp never does, and is accepted all the same: Unicode NFC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edge_prm.backends.gguf.layout import ADD_BOS_KEY, ADD_PREFIX_KEY, BOS_KEY, EOS_KEY, UNKNOWN_KEY
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import CheckpointError, UnsupportedArchitectureError
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.tokenizer import leading_id, open_tokenizer, read_settings
from edge_prm_export.gguf.sentencepiece import prefix_space, scores_of

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _PreTokenizer:
    """llama.cpp's name for a pre-tokenizer, and whether it takes a word of the vocabulary without its merges."""

    name: str
    ignore_merges: bool


_PRE_TOKENIZERS = {
    rf"{_HEAD}|\p{{N}}{_TAIL}": _PreTokenizer("qwen2", ignore_merges=False),
    rf"{_HEAD}|\p{{N}}{{1,3}}{_TAIL}": _PreTokenizer("llama-bpe", ignore_merges=True),
    _TEKKEN: _PreTokenizer("tekken", ignore_merges=True),
}
"""Regular expression of tokenizer.json -> pre-tokenizer: of Qwen2 and Qwen3, Llama 3, Mistral Nemo."""


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """Add the checkpoint's vocabulary, or `none` where llama.cpp cannot tokenize as tokenizer.json does."""
    data = _tokenizer_json(checkpoint)
    tokens = _tokens(checkpoint, data)
    merges = _merges(data)
    if (pre := _pre_tokenizer(data)) is not None and _usable(data, tokens):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(_types(checkpoint, data))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    elif (prefix := prefix_space(data)) is not None and (scores := scores_of(data, tokens, merges)) is not None:
        if not _usable(data, tokens):
            return writer.add_tokenizer_model("none")
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(_types(checkpoint, data))
        writer.add_bool(ADD_PREFIX_KEY, prefix)
    else:
        return writer.add_tokenizer_model("none")
    _add_special(writer, checkpoint, data)
    return None


def _add_special(writer: Any, checkpoint: Checkpoint, data: Mapping[str, Any]) -> None:
    """Add the ids of special tokens, and whether a text begins with one."""
    ids = {token: id_ for id_, token in _known(data).items()}
    settings = read_settings(checkpoint).tokens
    ends = [ids[token] for token in ("<|im_end|>", "<|endoftext|>") if token in ids]  # Qwen's
    end = min(ends) if ends else ids.get(settings.get("eos_token", ""))
    unknown = ids.get(str(data["model"].get("unk_token")))
    for key, id_ in ((EOS_KEY, end), (BOS_KEY, ids.get(settings.get("bos_token", ""))), (UNKNOWN_KEY, unknown)):
        if id_ is not None:
            writer.add_uint32(key, id_)
    writer.add_bool(ADD_BOS_KEY, leading_id(checkpoint, open_tokenizer(checkpoint)) is not None)


def spare_rows(checkpoint: Checkpoint) -> list[int]:
    """Rows of the embedding that no token uses. A tokenizer that went through GGUF lists them as padding."""
    known = _known(_tokenizer_json(checkpoint))
    return [row for row in range(checkpoint.config.vocabulary) if known.get(row, _padding(row)) == _padding(row)]


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """UnsupportedArchitectureError for a tokenizer that is not BPE."""
    kind = _tokenizer_json(checkpoint)["model"].get("type", "BPE")
    if kind != "BPE":
        raise UnsupportedArchitectureError(
            checkpoint.name, f"a {kind} tokenizer in a GGUF file", "BPE there, others without --gguf"
        )


def _padding(id_: int) -> str:
    """What llama.cpp's converters call a row without a token."""
    return f"[PAD{id_}]"


def _known(data: Mapping[str, Any]) -> dict[int, str]:
    """id -> token of tokenizer.json, added tokens included."""
    known = {int(id_): token for token, id_ in data["model"]["vocab"].items()}
    return known | {int(token["id"]): token["content"] for token in data.get("added_tokens", ())}


def _tokens(checkpoint: Checkpoint, data: Mapping[str, Any]) -> list[str]:
    known = _known(data)
    return [known.get(id_, _padding(id_)) for id_ in range(checkpoint.config.vocabulary)]


def _types(checkpoint: Checkpoint, data: Mapping[str, Any]) -> list[int]:
    known, unknown, fallback = _known(data), data["model"].get("unk_token"), data["model"].get("byte_fallback")
    added = {token["id"]: bool(token.get("special")) for token in data.get("added_tokens", ())}
    types = []
    for id_ in range(checkpoint.config.vocabulary):
        token = known.get(id_)
        if token is None:
            types.append(_UNUSED)
        elif fallback and token == unknown:
            types.append(_UNKNOWN)
        elif id_ in added:
            types.append(_CONTROL if added[id_] else _USER_DEFINED)
        else:
            types.append(_BYTE if fallback and _is_byte(token) else _NORMAL)
    return types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _merges(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokens, the first one first; old files have them as one string with a blank."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in data["model"].get("merges", []))
    return [(str(first), str(second)) for first, second in pairs]


def _usable(data: Mapping[str, Any], tokens: list[str]) -> bool:
    """Whether llama.cpp loads these tokens, and finds added ones in a text as tokenizer.json does."""
    flags = ("lstrip", "rstrip", "single_word")
    plain = not any(token.get(flag) for token in data.get("added_tokens", ()) for flag in flags)
    return plain and len(set(tokens)) == len(tokens) and all(token and "\0" not in token for token in tokens)


def _pre_tokenizer(data: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for a byte-level BPE's way to split a text into words; None for one that it does not know."""
    normalizer, model = data.get("normalizer"), data["model"]
    if normalizer is not None and normalizer.get("type") != "NFC":
        return None
    steps = list(_steps(data.get("pre_tokenizer")))
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = steps
    known = _PRE_TOKENIZERS.get(str((split.get("pattern") or {}).get("Regex")))
    isolated = split.get("behavior") == "Isolated" and not split.get("invert")
    if known is None or not isolated or byte_level.get("add_prefix_space") or byte_level.get("use_regex", True):
        return None
    return known.name if bool(model.get("ignore_merges")) == known.ignore_merges else None


def _steps(pre_tokenizer: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(pre_tokenizer, dict):
        yield from pre_tokenizer.get("pretokenizers", [pre_tokenizer])


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
