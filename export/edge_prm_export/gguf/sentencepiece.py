"""BPE over characters with byte fallback (Llama 2, Mistral): the scores from which llama.cpp tokenizes.

tokenizer.json has a list of merges, a GGUF file of the model `llama` a score for each token: llama.cpp joins the two
neighbours whose joined token has the highest score. Both agree where the merges are all pairs of tokens that join to a
token, in the order of the joined tokens, which is what converters from SentencePiece write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_BYTES = frozenset(f"<0x{value:02X}>" for value in range(256))


def prefix_space(data: Mapping[str, Any]) -> bool | None:
    """Whether a text gets a blank in front; None for a tokenizer that treats blanks in another way than llama.cpp.

    (A Metaspace pre-tokenizer adds none to a text that begins with one, and llama.cpp does.)
    """
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    if data.get("pre_tokenizer") is not None or steps not in ([_PREPEND, _REPLACE], [_REPLACE]):
        return None
    return steps[0] == _PREPEND


def scores_of(data: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float] | None:
    """A score for each of `tokens`; None where no scores give the tokens that the merges give."""
    model = data["model"]
    vocabulary = set(model["vocab"])
    if not model.get("byte_fallback") or model.get("ignore_merges") or not vocabulary >= _BYTES:
        return None
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(merges):
        joined = first + second
        if joined in ranks and merges[rank - 1][0] + merges[rank - 1][1] != joined:
            return None  # other tokens come between two merges to the same one
        ranks.setdefault(joined, rank)
    added = {token["content"] for token in data.get("added_tokens", ())}
    pairs = set(merges)
    for token in vocabulary - added - _BYTES:
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        if any(split not in pairs for split in splits if split[0] in vocabulary and split[1] in vocabulary):
            return None
    return [-float(ranks.get(token, len(merges))) for token in tokens]
