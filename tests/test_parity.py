"""Rewards of tiny checkpoints of 15 architectures against plain transformers on the same text, in fp32.

A bundle (native or through optimum) and `bench reference` either agree with it or refuse the checkpoint with a reason.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plain_transformers import (
    ARCHITECTURES,
    HEADS,
    TRAJECTORIES,
    assert_same,
    of_bundle,
    of_reference,
    oracle,
    outcome,
    set_tokenizer,
    trace_once,
    write_llamas,
    write_tiny,
)
from tiny import CHAT_TEMPLATE

from edge_prm.errors import CheckpointError
from edge_prm.manifest import read_manifest
from edge_prm_export.checkpoint.config import FAMILIES

traced_once = pytest.fixture(scope="module", autouse=True)(trace_once)
tiny_llama = pytest.fixture(scope="module")(write_llamas)

NO_TOKEN_CLASS = ("gemma3_text", "granite", "cohere", "olmo2")
"""transformers has no classifier of tokens for these."""
REFUSED = {
    ("gpt_neox", "token_class"): "has no reward head",  # transformers saves it as `classifier`
    ("gpt_neox", "token_pair"): "has no reward head",  # its output matrix is `embed_out`
    ("gpt_neox", "chat"): "has no reward head",
}
"""What is refused, and the words of the sentence that says why."""
DISAGREE = ("disagree about a text", "chat template", "tokenizer adds", "tokenizer_config.json")
COMBINATIONS = [
    (model, head) for model in ARCHITECTURES for head in HEADS if head != "token_class" or model not in NO_TOKEN_CLASS
]


@pytest.mark.parametrize(("model", "head"), COMBINATIONS)
def test_rewards_are_those_of_plain_transformers_or_refused(model: str, head: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", model, head)
    if said := REFUSED.get((model, head)):
        for way_of in (of_bundle, of_reference):
            with pytest.raises(CheckpointError, match=said):
                way_of(source, head, tmp_path if way_of is of_reference else tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    expected = [oracle(source, head, prompt, steps) for prompt, steps in TRAJECTORIES]
    rewards = np.concatenate(expected)
    assert rewards.std() > 0.004  # a difference would show
    assert ((rewards > 1e-3) & (rewards < 1 - 1e-3)).mean() > 0.5
    assert_same(of_reference(source, head, tmp_path), expected)
    exporters = ("auto", "optimum") if model in FAMILIES else ("auto",)
    for exporter in exporters:
        assert_same(of_bundle(source, head, tmp_path / exporter, exporter), expected)
        backend = read_manifest(tmp_path / exporter).backend
        assert backend == ("onnx" if model in FAMILIES and exporter == "auto" else "optimum")


# conventions of tokenizers


def _bos_first(folder: Path) -> None:
    """tokenizer.json puts a token in front of every text."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[token])
    tokenizer.save(str(folder / "tokenizer.json"))


def _bos_in_both(folder: Path) -> None:
    _bos_first(folder)
    set_tokenizer(folder, bos_token="<|endoftext|>")


def _bos_by_class(folder: Path) -> None:
    """Only transformers' class adds it."""
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    set_tokenizer(folder, tokenizer_class="LlamaTokenizerFast", add_bos_token=True, **names)


def _bos_off_by_class(folder: Path) -> None:
    """tokenizer.json adds it, and transformers' class takes it away again."""
    _bos_first(folder)
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    set_tokenizer(folder, tokenizer_class="LlamaTokenizerFast", add_bos_token=False, **names)


def _end_by_class(folder: Path) -> None:
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    set_tokenizer(folder, tokenizer_class="LlamaTokenizerFast", add_bos_token=False, add_eos_token=True, **names)


def _template_that_trims(folder: Path) -> None:
    set_tokenizer(folder, chat_template=CHAT_TEMPLATE.replace("message.content", "message.content | trim"))


def _template_with_another_last_turn(folder: Path) -> None:
    changed = CHAT_TEMPLATE.replace("message.content +", "message.content + ('' if loop.last else ' (done)') +")
    set_tokenizer(folder, chat_template=changed)


def _template_with_bos(folder: Path) -> None:
    set_tokenizer(folder, bos_token="<|endoftext|>", chat_template="{{ bos_token }}" + CHAT_TEMPLATE)


def _token_that_trims(folder: Path) -> None:
    """A special token that takes the blanks around it."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for token in tokenizer["added_tokens"]:
        token["lstrip"] = token["rstrip"] = True
    path.write_text(json.dumps(tokenizer))


CONVENTIONS = (
    _bos_in_both, _bos_by_class, _bos_off_by_class, _end_by_class, _template_that_trims,
    _template_with_another_last_turn, _template_with_bos, _token_that_trims,
)  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.__name__.strip("_"))
def test_a_convention_of_the_tokenizer_is_kept_or_refused(
    tiny_llama: Callable[[str], Path], tmp_path: Path, convention: Callable[[Path], None], head: str
) -> None:
    """Never another reward: within the limit, or a sentence that says where two tokenizers disagree."""
    source = Path(shutil.copytree(tiny_llama(head), tmp_path / "source"))
    convention(source)
    expected = [oracle(source, head, prompt, steps) for prompt, steps in TRAJECTORIES]
    found, said = outcome(lambda: of_bundle(source, head, tmp_path / "out"))
    assert_same(found, expected if found else [])
    assert bool(found) == (tmp_path / "out").exists()
    assert found or any(word in said for word in DISAGREE), said
    found, said = outcome(lambda: of_reference(source, head, tmp_path))
    if not found:
        assert any(word in said for word in DISAGREE), said
        return
    kept = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if ours]
    assert_same([ours for ours, _ in kept], [theirs for _, theirs in kept])
    for ours, line in zip(found, (tmp_path / "reference.jsonl").read_text().splitlines()[1:], strict=True):
        assert ours or "disagree about a text" in json.loads(line)["skipped"]
