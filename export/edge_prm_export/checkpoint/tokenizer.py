"""A checkpoint's tokenizer, as the exporter needs it: opened, compared with its settings, searched for tokens.

transformers does not use tokenizer.json as it is: tokenizer_config.json and the class that it names change it. What
changes the tokens of a text is followed here, or refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_prm.checkpoint_files import read_json
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import CheckpointError, CheckpointNotFoundError
from edge_prm_export.checkpoint.files import Checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SETTINGS_NAME = "tokenizer_config.json"
SPECIAL_MAP_NAME = "special_tokens_map.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_END = "<|endoftext|>"
_CLASSES: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "CodeLlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "CohereTokenizer": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>"},
    "GPTNeoXTokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
}
"""Special tokens that a class of transformers has where its settings name none."""
_BUILDERS = {
    **dict.fromkeys(("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"), True),
    "GPTNeoXTokenizer": False,
}
"""Classes that make tokenizer.json's post-processor new, of add_bos_token (with this default) and add_eos_token."""
_CLASS_OF_MODEL = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "ministral", "phi3", "phimoe", "llama4_text"), "LlamaTokenizer"),
    **dict.fromkeys(("arcee", "deepseek_v2", "deepseek_v3", "ernie4_5", "jamba", "zamba", "zamba2"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmo2", "olmoe", "stablelm", "mpt", "mamba"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gpt2", "granite", "starcoder2", "opt"), "GPT2Tokenizer"),
}
"""model_type -> class that AutoTokenizer takes where no settings name one (transformers 4.57)."""


@dataclass(frozen=True)
class Settings:
    """tokenizer_config.json as transformers reads it: `class_name` without "Fast" (or ""), `tokens`: bos_token and the
    like -> content, those that are set."""

    config: dict[str, Any]
    class_name: str
    tokens: dict[str, str]


def read_settings(checkpoint: Checkpoint) -> Settings:
    """Read a checkpoint's tokenizer settings; CheckpointError when a file of them is damaged."""
    path, map_path = checkpoint.folder / SETTINGS_NAME, checkpoint.folder / SPECIAL_MAP_NAME
    config = read_json(path, checkpoint.name) if path.exists() else {}
    named = config.get("tokenizer_class") or checkpoint.raw_config.get("tokenizer_class")
    class_name = str(named or _CLASS_OF_MODEL.get(checkpoint.model_type, "")).removesuffix("Fast")
    values = {**_CLASSES.get(class_name, {}), **{name: config[name] for name in _NAMES if name in config}}
    if map_path.exists() and "added_tokens_decoder" not in config:  # what older versions wrote
        special = read_json(map_path, checkpoint.name)
        values |= {name: special[name] for name in _NAMES if name in special}
    tokens = {name: _content(value) for name, value in values.items()}
    return Settings(config, class_name, {name: token for name, token in tokens.items() if token})


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Open the checkpoint's tokenizer; CheckpointError when it cannot be read or has more tokens than the model."""
    from tokenizers import Tokenizer

    path = checkpoint.folder / TOKENIZER_NAME
    if not path.is_file():
        raise CheckpointNotFoundError(checkpoint.name, f"{TOKENIZER_NAME} is missing")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again") from None
    size, rows = tokenizer.get_vocab_size(with_added_tokens=True), checkpoint.config.vocabulary
    if size > rows:
        raise CheckpointError(f"{path} has {size} tokens and config.json a vocab_size of {rows}; they do not match")
    return tokenizer


def token_id(checkpoint: Checkpoint, tokenizer: Tokenizer, token: str, option: str = "--separator") -> int:
    """Return the id of a special token; CheckpointError when the tokenizer does not know it."""
    id_ = tokenizer.token_to_id(token)
    if id_ is None:
        path = checkpoint.folder / TOKENIZER_NAME
        raise CheckpointError(f"{path} has no token {token!r}; name the right one with {option}")
    return int(id_)


def bos_id(checkpoint: Checkpoint, tokenizer: Tokenizer) -> int | None:
    """The id of the settings' bos_token, or None when they have none; CheckpointError when the tokenizer lacks it."""
    token = read_settings(checkpoint).tokens.get("bos_token")
    if token is None:
        return None
    id_ = tokenizer.token_to_id(token)
    if id_ is None:
        raise CheckpointError(_saved_again(checkpoint, f"their bos_token is {token!r}, which {TOKENIZER_NAME} lacks"))
    return int(id_)


def leading_id(checkpoint: Checkpoint, tokenizer: Tokenizer) -> int | None:
    """The token that transformers puts before every text, or None; CheckpointError when it puts more.

    Some classes ignore tokenizer.json's post-processor and follow add_bos_token and add_eos_token.
    """
    settings = read_settings(checkpoint)
    if settings.class_name in _BUILDERS:
        if settings.config.get("add_eos_token", False):
            raise CheckpointError(_added(checkpoint, "a token (add_eos_token)"))
        if not settings.config.get("add_bos_token", _BUILDERS[settings.class_name]):
            return None
        first = bos_id(checkpoint, tokenizer)
        if first is None:
            raise CheckpointError(_saved_again(checkpoint, "they ask for add_bos_token and name no bos_token"))
        return first
    plain, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    added = len(full) - len(plain)
    if added == 0:
        return None
    if added > 1 or full[1:] != plain:
        raise CheckpointError(_added(checkpoint, f"{added} tokens"))
    return int(full[0])


def check_settings(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """CheckpointError when transformers would change tokenizer.json, after its settings, so that texts get other tokens
    than by the file itself."""
    settings = read_settings(checkpoint)
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    listed = settings.config.get("added_tokens_decoder")
    for entry in listed.values() if isinstance(listed, dict) else ():
        token = entry if isinstance(entry, dict) else {}
        content, in_file = str(token.get("content")), known.get(str(token.get("content")))
        if in_file is None:
            said = f"they add the token {content!r}, which {TOKENIZER_NAME} lacks"
            raise CheckpointError(_saved_again(checkpoint, said))
        for name in ("lstrip", "rstrip", "single_word", *(["normalized"] if tokenizer.normalizer is not None else [])):
            if name in token and bool(token[name]) != getattr(in_file, name):
                said = f"they set {name} of the token {content!r} to {token[name]!r}"
                raise CheckpointError(_saved_again(checkpoint, f"{said}, and {TOKENIZER_NAME} to the opposite"))
    wanted, in_file = _prefix_space(settings, tokenizer)
    if wanted != in_file:
        said = f"they set add_prefix_space to {wanted}, and {TOKENIZER_NAME} to the opposite"
        raise CheckpointError(_saved_again(checkpoint, said))


def _prefix_space(settings: Settings, tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether the settings, and whether tokenizer.json puts a blank in front of a text, where that can differ."""
    if settings.class_name in ("LlamaTokenizer", "CodeLlamaTokenizer"):  # rebuilt from tokenizer.model when it is given
        wanted = settings.config.get("add_prefix_space")
        tokens = tokenizer.encode("a", add_special_tokens=False).tokens
        return (False, False) if wanted is None else (bool(wanted), tokens[:1] != ["a"])
    state = json.loads(tokenizer.pre_tokenizer.__getstate__()) if tokenizer.pre_tokenizer is not None else {}
    wanted = bool(settings.config.get("add_prefix_space", False))
    return wanted, bool(state.get("add_prefix_space", wanted))


def _added(checkpoint: Checkpoint, what: str) -> str:
    return (
        f"checkpoint {checkpoint.name}: its tokenizer adds {what} to every text, and not one in front; "
        "after which of them a reward is read is not known"
    )


def _saved_again(checkpoint: Checkpoint, fault: str) -> str:
    return (
        f"checkpoint {checkpoint.name}: its tokenizer settings do not fit its {TOKENIZER_NAME}: {fault}; save the "
        "tokenizer again with transformers (AutoTokenizer.from_pretrained(folder).save_pretrained(folder))"
    )


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
