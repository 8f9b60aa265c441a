"""Tiny checkpoints of each decoder family that GGUF bundles are written of, saved by transformers, with their heads.

Tokenizers are as the families have them: byte-level BPE of Qwen and Llama 3, SentencePiece-like BPE of Mistral.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHAT_TEMPLATE, set_config, write_reward_head, write_tokenizer

REASON = 'the other side of these tests is transformers: pip install "edge-prm[optimum]"'
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
"""Most dimensions of a head of 64 turn less than once in 32 positions, some more than four times."""
_SHAPES: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "head_dim": 32,
    "initializer_range": 0.15, "num_labels": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None, "rms_norm_eps": 1e-6,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {"rope_theta": 1e6}),
    "qwen3": ("Qwen3Config", {"head_dim": 64, "rope_theta": 1e6}),
    "llama": ("LlamaConfig", {"rope_theta": 1e4}),
    "llama3": ("LlamaConfig", {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING, "head_dim": 64}),
    "mistral": ("MistralConfig", {"head_dim": 64, "sliding_window": None}),
}
"""name of a row -> config class, and what it has of its own: widths of attention that are not the hidden size too."""
ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "llama3": "llama", "mistral": "llama"}
HEADS = ("sigmoid", "two_class", "token_class", "token_pair")
GOOD, BAD, TAG = "+", "-", "ки"
PAIR: dict[str, Any] = {"token_pair": (GOOD, BAD), "separator": TAG, "between": " ", "after_step": "\n"}
"""Options of an export of a `token_pair`."""
_CORPUS = (
    "How many eggs does she sell at the market? Janet has 16 eggs a day.\n\nShe eats 3 of them. + -",
    "What is 2 + 3 * 4? First multiply: 3 * 4 = 12.\n\nThen add: 2 + 12 = 14.\n\nThe answer is 14. ки",
)


def write_family(folder: Path, family: str, head: str = "sigmoid", **own: Any) -> Path:
    """A checkpoint of a family whose every part matters to the rewards."""
    kind, options = FAMILIES[family]
    torch.manual_seed(len(family) + 11)
    config = getattr(transformers, kind)(**(_SHAPES | options | own))
    net = transformers.AutoModelForCausalLM.from_config(config)
    state = net.state_dict()
    for name in state:
        if "norm" in name:
            state[name] = state[name] + 0.2 * torch.randn_like(state[name])
        if "bias" in name:
            state[name] = 0.2 * torch.randn_like(state[name])
        if "q_proj.weight" in name or "k_proj.weight" in name:
            state[name] = 2 * state[name]
    width = config.hidden_size
    if head == "two_class":
        state |= {"score.0.weight": torch.randn(width, width) / 8, "score.0.bias": torch.randn(width) / 8}
        state |= {"score.2.weight": torch.randn(2, width) / 4, "score.2.bias": torch.randn(2) / 8}
    if head == "token_class":
        state |= {"score.weight": torch.randn(2, width) / 6, "score.bias": torch.randn(2) / 8}
    net.save_pretrained(folder, state_dict=state)
    if head == "sigmoid":
        weight = (torch.randn(1, width) / 6).numpy()
        write_reward_head(folder / "reward_head.pt", weight, np.array([0.1], dtype=np.float32))
    if head == "token_class":
        set_config(folder, architectures=[type(net).__name__.replace("ForCausalLM", "ForTokenClassification")])
    write_tokenizer_of(folder, family)
    return folder


def write_tokenizer_of(folder: Path, family: str) -> None:
    """tokenizer.json and its settings, as a family has them."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    path = folder / "tokenizer.json"
    if family == "mistral":
        write_sentencepiece(path)
        settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        write_tokenizer(path)
        if family == "llama3":
            as_llama3(path)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def as_llama3(path: Path) -> None:
    """Make Qwen2's tokenizer one as Llama 3's: digits in threes, words of the vocabulary without merges."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data["normalizer"] = None
    data["model"]["ignore_merges"] = True
    pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    assert pattern["Regex"].count(r"|\p{N}|") == 1
    pattern["Regex"] = pattern["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    path.write_text(json.dumps(data), encoding="utf-8")


def write_sentencepiece(path: Path, *, normalizer: str = "legacy") -> Path:
    """A BPE over characters with byte fallback, whose merges are all pairs of pieces in the order of the pieces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    words = " ".join(_CORPUS).replace("\n", " ").split(" ")
    pieces, merges = _train([list("▁" + word) for word in words if word], 120)
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE({piece: id_ for id_, piece in enumerate(vocabulary)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )  # fmt: skip
    replace = normalizers.Replace(" ", "▁")
    steps = [normalizers.Prepend("▁"), replace] if normalizer == "legacy" else [replace]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>", "<extra_0>")]
    )
    tokenizer.save(str(path))
    return path


def _train(words: Sequence[list[str]], count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """BPE by the most frequent pair; then every split of a piece into two pieces is a merge, as converters write."""
    characters = sorted({character for word in words for character in word} | set("ки+-"))
    learned: list[str] = []
    for _ in range(count):
        pairs: dict[str, int] = {}
        for word in words:
            for first, second in pairwise(word):
                pairs[first + second] = pairs.get(first + second, 0) + 1
        if not pairs:
            break
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        learned.append(best)
        for word in words:
            at = 0
            while at < len(word) - 1:
                if word[at] + word[at + 1] == best:
                    word[at : at + 2] = [best]
                at += 1
    if "ки" not in learned:
        learned.append("ки")
    known = {*characters, *learned}
    merges = [
        (piece[:at], piece[at:])
        for piece in learned
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    return [*characters, *learned], merges


def torch_rewards(folder: Path, head: str, ids: Sequence[int], read_at: Sequence[int]) -> np.ndarray:
    """The rewards by the formula of the head, on the hidden states of a model of transformers, in fp32."""
    from safetensors.torch import load_file

    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    state = load_file(folder / "model.safetensors")
    with torch.no_grad():
        hidden = net.model(torch.tensor([list(ids)])).last_hidden_state[0, list(read_at)]
        if head == "sigmoid":
            layer = torch.load(folder / "reward_head.pt")
            return torch.sigmoid(hidden @ layer["weight"].T + layer["bias"])[:, 0].numpy()
        if head == "two_class":
            hidden = torch.relu(hidden @ state["score.0.weight"].T + state["score.0.bias"])
            return torch.softmax(hidden @ state["score.2.weight"].T + state["score.2.bias"], -1)[:, 1].numpy()
        if head == "token_class":
            return torch.softmax(hidden @ state["score.weight"].T + state["score.bias"], -1)[:, 1].numpy()
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        pair = tokenizer.convert_tokens_to_ids([BAD, GOOD])
        return torch.softmax(net.lm_head(hidden)[:, pair], -1)[:, 1].numpy()
