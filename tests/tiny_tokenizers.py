"""Tiny tokenizers in the file formats of the real ones, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_REGEX = QWEN2_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SENTENCEPIECE_TOKENS = ("<unk>", "<s>", "</s>")
_CORPUS = (
    "How many eggs does she sell at the market?Janet has 16 eggs a day.\n\nShe eats 3 of them.\n\n16 - 3 = 13\n\n",
    "What is 2 + 3 * 4? First multiply: 3 * 4 = 12.\n\nThen add: 2 + 12 = 14.\n\nThe answer is 14.\n\n",
    "A farmer has 17 sheep and buys 5 more, so he has 22 sheep.\r\n\r\nHe sells 8 of them: 22 - 8 = 14.\n",
    "Let x be a number such that 2x + 3 = 11. Subtract 3 from both sides?\n\nDivide both sides by 2: x = 4!\n\n",
    "system user assistant You judge the steps of a solution. <think> Wait, that is wrong. </think>\n\n\n",
)


def write_tokenizer(path: Path, vocabulary: int = 480, *, trim_offsets: bool = False) -> Path:
    """A byte-level BPE as Qwen2's, trained on a few sentences, with the special tokens after its vocabulary."""
    from tokenizers import normalizers, processors

    tokenizer = _byte_level(QWEN2_REGEX, vocabulary)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return _save(tokenizer, path, SPECIAL_TOKENS)


def write_llama3_tokenizer(path: Path, vocabulary: int = 480) -> Path:
    """A byte-level BPE as Llama 3's: digits in threes, and a first token in front of every text."""
    from tokenizers import processors

    tokenizer = _byte_level(LLAMA3_REGEX, vocabulary)
    _save(tokenizer, path, (*SPECIAL_TOKENS, *LLAMA3_TOKENS))
    first = LLAMA3_TOKENS[0]
    template = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(path))
    return path


def write_sentencepiece_tokenizer(path: Path, vocabulary: int = 480) -> Path:
    """A BPE as Llama 2's and Mistral's: blanks are `▁`, unknown characters fall back to bytes, `<s>` comes first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from tokenizers.trainers import BpeTrainer

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SENTENCEPIECE_TOKENS, *bytes_], min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator([line for text in _CORPUS * 4 for line in text.splitlines(keepends=True)], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _save(tokenizer, path, SPECIAL_TOKENS)
    data = json.loads(path.read_text(encoding="utf-8"))  # byte tokens are ordinary ones in the real files
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in bytes_]
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def _byte_level(regex: str, vocabulary: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return tokenizer


def _save(tokenizer: Any, path: Path, special: Sequence[str]) -> Path:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(path))
    return path
