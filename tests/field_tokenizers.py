"""Tokenizers and chat templates of the field's kinds, and what transformers gives for a text."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tiny import CHAT_TEMPLATE, opened, write_tokenizer
from tiny_formats import format_of

from edge_prm.encode import Encoder
from edge_prm.input_format import InputFormat

PROMPTS = ("What is 2 + 3 * 4?", " What?\n", "\n\n  A\tb \u00a0", "e\u0301t\u00e9, 中文 😀\r\n", "\u3000x\u2028")
STEPS = (
    ("3 * 4 = 12", "2 + 12 = 14"),
    ("  one", "two  ", "three\nlines\n\nof text", "\tfour\t"),
    ("\u00a0a\u00a0", " 中 😀 ", "e\u0301", "."),
)
WORDS = st.lists(
    st.sampled_from(["a", "Janet", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "e\u0301", "中", "😀", "1", "= 4", "."]),
    min_size=1,
    max_size=6,
).map("".join).filter(lambda text: text.strip() != "")  # fmt: skip
LINES = WORDS.map(lambda text: text.strip("\r\n")).filter(lambda text: text.strip() != "")

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + CONTENT + '<|im_end|>\\n' }}{% endfor %}"
OPENED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TEMPLATES = {
    "plain": CHAT_TEMPLATE,
    "trim": CHATML.replace("CONTENT", "m.content | trim") + OPENED,
    "strip left": CHATML.replace("CONTENT", "m['content'].lstrip()") + OPENED,
    "strip right": CHATML.replace("CONTENT", "m['content'].rstrip()") + OPENED,
    "strip newlines": CHATML.replace("CONTENT", "m['content'].strip('\\n')") + OPENED,
    "trim the user": CHATML.replace("CONTENT", "(m.content | trim if m.role == 'user' else m.content)") + OPENED,
    "bos": "{{ bos_token }}" + CHATML.replace("CONTENT", "m.content") + OPENED,
    "generation": (
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n<|im_start|>user\n{{ m.content }}<|im_end|>\n"
        "    {% else %}<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "  {% endif %}{% endfor %}" + OPENED
    ),
    "continue": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 99 %}{% break %}"
        "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" + OPENED
    ),
    "tojson": (
        "{{ {'b': 'é<', 'a': [1]} | tojson(ensure_ascii=true, indent=2, sort_keys=true) }}"
        "{{ {'é': '<&>'} | tojson }}{{ [1, 2] | tojson(separators=(',', ':')) }}"
        + CHATML.replace("CONTENT", "m.content")
        + OPENED
    ),
    "date": "{{ strftime_now('%Y') + '\\n' }}" + CHATML.replace("CONTENT", "m.content") + OPENED,
}


def byte_level(path: Path, **flags: Any) -> Path:
    """The tiny tokenizer; `flags` are set on `<extra_0>` and `<|im_start|>`."""
    write_tokenizer(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    for token in data["added_tokens"]:
        if token["content"] in ("<extra_0>", "<|im_start|>"):
            token |= flags
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def sentencepiece_like(path: Path, scheme: str, **flags: Any) -> Path:
    """A BPE with byte fallback over blanks turned into `▁`, as Llama's; `scheme`: first, always, never or normalizer."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    trainer = BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["What is 2 + 3? Janet has one egg. user assistant system 4 = 12"] * 5, trainer)
    data = json.loads(tokenizer.to_str())
    count = len(data["model"]["vocab"])
    data["model"]["vocab"] |= {f"<0x{byte:02X}>": count + byte for byte in range(256)}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    special = ["<|im_start|>", "<|im_end|>", "<extra_0>", "<|endoftext|>"]
    tokenizer.add_tokens([AddedToken(token, **({"normalized": False, "special": True} | flags)) for token in special])
    tokenizer.save(str(path))
    return path


def unigram(path: Path, **flags: Any) -> Path:
    """A Unigram model whose vocabulary holds its special tokens, so that plain text can become them."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    special = ["<|im_start|>", "<|im_end|>", "<extra_0>", "<|endoftext|>"]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzAJWX<>|_0123456789=+*?.\n▁"))
    pieces = [("<unk>", 0.0), *((token, -1.0) for token in special), *((letter, -5.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.add_special_tokens([AddedToken(token, **({"normalized": False} | flags)) for token in special])
    tokenizer.save(str(path))
    return path


TOKENIZERS: dict[str, Callable[[Path], Path]] = {
    "byte level": byte_level,
    "not special": lambda path: byte_level(path, special=False),
    "normalized": lambda path: byte_level(path, special=False, normalized=True),
    "lstrip": lambda path: byte_level(path, lstrip=True),
    "rstrip": lambda path: byte_level(path, rstrip=True),
    "strips, not special": lambda path: byte_level(path, lstrip=True, rstrip=True, special=False),
    "first blank": lambda path: sentencepiece_like(path, "first"),
    "every blank": lambda path: sentencepiece_like(path, "always", rstrip=True),
    "no blank": lambda path: sentencepiece_like(path, "never"),
    "normalizer": lambda path: sentencepiece_like(path, "normalizer"),
    "unigram": unigram,
}


RAW_TOKENIZERS = [name for name in TOKENIZERS if name not in ("unigram", "strips, not special")]


def set_tokenizer_config(folder: Path, **changes: Any) -> Path:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    } | changes  # fmt: skip
    kept = {name: value for name, value in config.items() if value is not KeyError}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


def encoder_for(folder: Path, form: InputFormat) -> Encoder:
    return Encoder.of_format(folder / "tokenizer.json", form, 1 << 20, opened(folder).config.vocabulary)


def theirs(folder: Path) -> Any:
    """The oracle, loaded again where files changed."""
    return _loaded(str(folder), tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())))


@functools.lru_cache(maxsize=256)
def _loaded(folder: str, _stamp: object) -> Any:
    transformers = pytest.importorskip("transformers", reason="the reference is transformers: pip install transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@functools.lru_cache(maxsize=256)
def encoder_of_kind(folder: Path, kind: str) -> Encoder:
    return encoder_for(folder, format_of(opened(folder), kind))


def chat_ids(tokenizer: Any, prompt: str, steps: tuple[str, ...], separator: str = "<extra_0>") -> list[int]:
    """The ids that the authors' code gives, up to the last separator: what is after it is never read."""
    content = "".join(step + separator for step in steps)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": content}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    last = max(at for at, id_ in enumerate(ids) if id_ == tokenizer.convert_tokens_to_ids(separator))
    return list(ids[: last + 1])
