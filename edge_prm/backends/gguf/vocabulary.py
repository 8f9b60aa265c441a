"""Check the vocabulary of a GGUF file, which other tools tokenize with; edge-prm itself uses tokenizer.json.

llama.cpp ends the process for two equal tokens, and reads lists of numbers by the length of the list of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_prm.backends.gguf.header import STRING, ListField, Reader
from edge_prm.backends.gguf.layout import (
    MERGES,
    MODEL_KEY,
    PRE_KEY,
    PRE_TOKENIZERS,
    SCORES,
    TOKEN_ID_KEYS,
    TOKEN_TYPES,
    TOKENS,
    VOCABULARIES,
    VOCABULARY_FLAGS,
)

_INT32, _FLOAT32 = 5, 6
_ITEM_TYPES = {TOKENS: STRING, TOKEN_TYPES: _INT32, MERGES: STRING, SCORES: _FLOAT32}
_LAST_TOKEN_TYPE = 6  # of llama.cpp's llama_token_type


def check_vocabulary(reader: Reader, fields: Mapping[str, Any], size: int) -> None:
    """ValueError for a vocabulary of `size` tokens that the exporter does not write, or that llama.cpp crashes on."""
    model = fields.get(MODEL_KEY)
    if not isinstance(model, str) or model not in VOCABULARIES:
        raise ValueError(f"{MODEL_KEY} is {model!r} and should be one of {', '.join(VOCABULARIES)}")
    if model == "gpt2" and fields.get(PRE_KEY) not in PRE_TOKENIZERS:
        raise ValueError(f"{PRE_KEY} is {fields.get(PRE_KEY)!r} and should be one of {', '.join(PRE_TOKENIZERS)}")
    _check_keys(fields, model, size)
    lists = VOCABULARIES[model]
    for key in lists:
        field = fields.get(key)
        if not isinstance(field, ListField) or field.item_type != _ITEM_TYPES[key]:
            raise ValueError(f"{key} is missing, or is not a list of the right type")
        if key != MERGES and field.length != size:
            raise ValueError(f"{key} has {field.length} items and the vocabulary {size}")
    if lists:
        _check_tokens(reader.strings(fields[TOKENS]))
        _check_numbers(reader, fields)
    if MERGES in lists:
        _check_merges(reader.strings(fields[MERGES]))


def _check_keys(fields: Mapping[str, Any], model: str, size: int) -> None:
    """ValueError for a key that this kind of tokenizer does not have, and for the id of a token that is not there."""
    known = {
        MODEL_KEY,
        *VOCABULARIES[model],
        *TOKEN_ID_KEYS,
        *VOCABULARY_FLAGS,
        *([PRE_KEY] if model == "gpt2" else []),
    }
    for key, value in fields.items():
        if not key.startswith("tokenizer."):
            continue
        if key not in known:
            raise ValueError(f"unexpected key {key[:60]!r}")
        if key in TOKEN_ID_KEYS and not (type(value) is int and 0 <= value < size):
            raise ValueError(f"{key} is {value!r} and there are {size} tokens")
        if key in VOCABULARY_FLAGS and type(value) is not bool:
            raise ValueError(f"{key} is {value!r}")


def _check_tokens(tokens: Sequence[bytes]) -> None:
    """ValueError for tokens that llama.cpp takes for equal.

    It reads a token as a C string, which ends at its first zero byte, and gives an empty one a name of its own.
    """
    for index, token in enumerate(tokens):
        if not token or b"\0" in token:
            raise ValueError(f"token {index} is empty or holds a zero byte")
    if len(set(tokens)) != len(tokens):
        first: dict[bytes, int] = {}
        index, token = next(pair for pair in enumerate(tokens) if first.setdefault(pair[1], pair[0]) != pair[0])
        raise ValueError(f"tokens {first[token]} and {index} are both {token[:60]!r}")


def _check_numbers(reader: Reader, fields: Mapping[str, Any]) -> None:
    types = reader.numbers(fields[TOKEN_TYPES])
    if len(types) and not 0 <= types.min() <= types.max() <= _LAST_TOKEN_TYPE:
        raise ValueError(f"token types lie between {types.min()} and {types.max()}")
    if SCORES in fields and not np.isfinite(reader.numbers(fields[SCORES])).all():
        raise ValueError("a score of a token is NaN or infinity")


def _check_merges(merges: Sequence[bytes]) -> None:
    for index, merge in enumerate(merges):
        first, _, second = merge.partition(b" ")
        if not first or not second or b" " in second or b"\0" in merge:
            raise ValueError(f"merge {index} is {merge[:60]!r} and should be two tokens")
