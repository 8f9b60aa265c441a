"""A checkpoint's conventions, from its own files to token ids: they equal those of transformers, or are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from field_tokenizers import (
    LINES,
    PROMPTS,
    RAW_TOKENIZERS,
    STEPS,
    TEMPLATES,
    TOKENIZERS,
    WORDS,
    encoder_for,
    encoder_of_kind,
    sentencepiece_like,
    set_tokenizer_config,
    theirs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import opened, set_config, write_checkpoint, write_tokenizer
from tiny_formats import format_of

from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import CheckpointError
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.tokenizer import open_tokenizer

pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')


# text of the user stays text

LOOK_ALIKES = (
    "<extra_0>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "＜extra_0＞",
    "<extra_0><extra_0>",
    " <extra_0> ",
)


def special_count(encoded: Encoded, ids: set[int]) -> int:
    return int(np.isin(encoded.ids, [*ids]).sum())


@pytest.mark.parametrize("kind", ["two_class", "token_pair", "token_class", "tagged", "token_class special"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_look_alike_is_plain_text(checkpoint_with: Callable, tokenizer: str, kind: str) -> None:
    folder = checkpoint_with(tokenizer, "token_class" if "token_class" in kind else "two_class")
    options = {"tagged": ("token_pair", "<extra_0>"), "token_class special": ("token_class", "<extra_0>")}
    form = format_of(opened(folder), *options.get(kind, (kind,)))
    encoder = encoder_for(folder, form)
    used = {"two_class": "<extra_0> <|im_start|> <|im_end|>", "token_pair": "<|im_start|> <|im_end|>"}.get(kind, "")
    used += " <extra_0>" if "special" in kind or kind == "tagged" else ""
    used += " <|endoftext|>" if form.bos_id is not None else ""
    known = open_tokenizer(opened(folder))
    ids = {known.token_to_id(token) for token in used.split()}
    ordinary = special_count(encoder.encode(Trajectory.of("Q", ["a", "b"])), ids)
    for token in LOOK_ALIKES:
        tricked = encoder.encode(Trajectory.of(f"Q {token}", [f"a{token}", f"{token}b"]))
        assert special_count(tricked, ids) == ordinary, token
        assert len(tricked.read_at) == 2


def test_a_look_alike_changes_nothing_but_itself(checkpoint_with: Callable) -> None:
    """The ids of a text with a look-alike, decoded, are the text."""
    folder = checkpoint_with("not special")
    encoder, reference = encoder_for(folder, format_of(opened(folder), "two_class")), theirs(folder)
    encoded = encoder.encode(Trajectory.of("P <extra_0>", ["a <|im_end|>", "<extra_0> b"]))
    text = reference.decode(encoded.ids.tolist(), clean_up_tokenization_spaces=False)
    assert text.endswith(
        "user\nP <extra_0><|im_end|>\n<|im_start|>assistant\na <|im_end|><extra_0><extra_0> b<extra_0>"
    )


def test_a_token_of_the_text_that_no_format_uses_stays_a_token(tmp_path: Path, tokenizer_file: Path) -> None:
    """Reasoning models have `<think>` as a token that is not special; their judges saw it as one."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    folder = write_checkpoint(tmp_path / "c", tmp_path / "tokenizer.json", "two_class")
    encoder = encoder_for(folder, format_of(opened(folder), "two_class"))
    ids = encoder.encode(Trajectory.of("Q", ["<think>a"])).ids
    assert (ids == tokenizer.token_to_id("<think>")).sum() == 1


def test_a_token_that_is_not_found_in_a_text_is_refused(tmp_path: Path) -> None:
    """A normalizer that puts a blank in front changes a normalized token too: transformers finds it nowhere."""
    tokenizer = sentencepiece_like(tmp_path / "t.json", "normalizer", normalized=True)
    folder = write_checkpoint(tmp_path / "c", tokenizer, "two_class")
    with pytest.raises(CheckpointError, match=r"does not fit its format: the token '<\|im_start\|>' is not read"):
        format_of(opened(folder), "two_class")


# the token that begins a text

BEGINNINGS: dict[str, dict[str, Any]] = {
    "by the file": {},
    "llama": {"tokenizer_class": "LlamaTokenizer"},
    "llama, fast": {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True},
    "llama without": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False},
    "llama with null": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": None},
    "gemma": {"tokenizer_class": "GemmaTokenizer"},
    "gemma without": {"tokenizer_class": "GemmaTokenizerFast", "add_bos_token": False},
    "neox": {"tokenizer_class": "GPTNeoXTokenizer"},
    "neox with": {"tokenizer_class": "GPTNeoXTokenizerFast", "add_bos_token": True},
    "cohere": {"tokenizer_class": "CohereTokenizer"},
    "qwen": {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": True},
}


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_text_begins_as_transformers_begins_it(
    checkpoint_with: Callable, tmp_path: Path, beginning: str, in_file: bool
) -> None:
    """`in_file`: whether tokenizer.json's own post-processor puts a token in front."""
    from tokenizers import Tokenizer, processors

    folder = Path(shutil.copytree(checkpoint_with("byte level", "sigmoid"), tmp_path / "c"))
    unk = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    set_tokenizer_config(folder, **unk, **BEGINNINGS[beginning])
    if in_file:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        begins = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
        tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[begins])
        tokenizer.save(str(folder / "tokenizer.json"))
    form = format_of(opened(folder), "sigmoid")
    ids = encoder_for(folder, form).encode(Trajectory.of("What is it?", ["a", "b"])).ids
    assert ids.tolist() == theirs(folder)("What is it?a\n\nb")["input_ids"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}, "bos_token is '<s>', which tokenizer.json lacks"),
        ({"tokenizer_class": "LlamaTokenizer", "bos_token": KeyError}, "'<s>', which tokenizer.json lacks"),
        ({"tokenizer_class": "LlamaTokenizer", "bos_token": None}, "ask for add_bos_token and name no bos_token"),
        ({"tokenizer_class": "GemmaTokenizer", "add_eos_token": True}, "adds a token .add_eos_token. to every text"),
        ({"add_prefix_space": True, "tokenizer_class": "LlamaTokenizer"}, "set add_prefix_space to True"),
        ({"added_tokens_decoder": {"9999": {"content": "<new>"}}}, "add the token '<new>', which tokenizer.json lacks"),
        ({"added_tokens_decoder": {"1": {"content": "<extra_0>", "lstrip": True}}}, "set lstrip of .*opposite"),
    ],
)
def test_settings_that_change_the_tokenizer_are_refused(
    checkpoint_with: Callable, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        format_of(opened(checkpoint_with("byte level", "sigmoid", **settings)), "sigmoid")


def test_special_tokens_of_older_versions_are_read(checkpoint_with: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_with("byte level", "token_class", bos_token=KeyError), tmp_path / "c"))
    assert format_of(opened(folder), "token_class").bos_id is None
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<|im_end|>", "lstrip": False}})
    )
    assert format_of(opened(folder), "token_class").bos_id == theirs(folder).bos_token_id


# step by step and at once


def stripping(path: Path, **flags: Any) -> Path:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(write_tokenizer(path)))
    tokenizer.add_tokens([AddedToken("<wait>", special=False, normalized=False, **flags)])
    tokenizer.save(str(path))
    return path


def ending_stripped(path: Path) -> Path:
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(write_tokenizer(path)))
    tokenizer.normalizer = normalizers.Strip(left=False, right=True)
    tokenizer.save(str(path))
    return path


def gpt2_like(path: Path) -> Path:
    """GPT-2's pattern parts a run of newlines at the end of a text otherwise than before a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a\n\n\n\n", "b\n\n"] * 20, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"])
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("make", [lambda path: stripping(path, lstrip=True), ending_stripped, gpt2_like])
def test_a_tokenizer_by_which_a_closed_step_changes_is_refused_for_raw_text(tmp_path: Path, make: Callable) -> None:
    folder = write_checkpoint(tmp_path / "c", make(tmp_path / "tokenizer.json"), "sigmoid")
    with pytest.raises(CheckpointError, match="rewards step by step and at once would differ"):
        format_of(opened(folder), "sigmoid")


@pytest.mark.parametrize("make", [lambda path: stripping(path, lstrip=True), gpt2_like])
def test_the_same_tokenizer_is_taken_where_a_token_closes_steps(tmp_path: Path, make: Callable) -> None:
    folder = write_checkpoint(tmp_path / "c", make(tmp_path / "tokenizer.json"), "two_class")
    encoder = encoder_for(folder, format_of(opened(folder), "two_class"))
    steps = ["a ", "<wait> b", " c"]
    full = encoder.encode(Trajectory.of("Q", steps))
    for count in (1, 2):
        part = encoder.encode(Trajectory.of("Q", steps[:count]))
        assert part.ids.tolist() == full.ids[: full.read_at[count - 1] + 1].tolist()


def test_a_token_that_eats_what_follows_is_taken(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", stripping(tmp_path / "tokenizer.json", rstrip=True), "sigmoid")
    encoder, reference = encoder_for(folder, format_of(opened(folder), "sigmoid")), theirs(folder)
    encoded = encoder.encode(Trajectory.of("Q", ["a <wait>", "  b"]))
    assert encoded.ids.tolist() == reference("Qa <wait>\n\n  b")["input_ids"]
    assert encoded.ids[: encoded.read_at[0] + 1].tolist() == reference("Qa <wait>\n\n")["input_ids"]


@settings(max_examples=40)
@given(
    tokenizer=st.sampled_from(RAW_TOKENIZERS),
    kind=st.sampled_from(["sigmoid", "two_class", "token_pair", "token_class"]),
    template=st.sampled_from(["plain", "trim", "strip newlines"]),
    prompt=WORDS,
    steps=st.lists(LINES, min_size=2, max_size=4),
)
def test_no_token_of_a_closed_step_depends_on_what_follows(
    checkpoint_with: Callable, tokenizer: str, kind: str, template: str, prompt: str, steps: list[str]
) -> None:
    head = "two_class" if kind == "token_pair" else kind
    folder = checkpoint_with(tokenizer, head, chat_template=TEMPLATES[template])
    encoder = encoder_of_kind(folder, kind)
    trajectory = Trajectory.of(prompt, steps)
    full = encoder.encode(trajectory)
    for count in range(1, len(steps)):
        part = encoder.encode(Trajectory(prompt, trajectory.steps[:count]))
        assert part.read_at == full.read_at[:count]
        assert part.ids[: part.read_at[-1] + 1].tolist() == full.ids[: part.read_at[-1] + 1].tolist()


# what a completion may hold


def test_the_format_names_the_text_that_closes_a_step(checkpoint_with: Callable) -> None:
    two, one, raw = checkpoint_with(), checkpoint_with(head="token_class"), checkpoint_with(head="sigmoid")
    named = {
        "template": format_of(opened(two), "two_class"),
        "tags": format_of(opened(two), "token_pair", " ки"),
        "chat": format_of(opened(two), "token_pair"),
        "trl": format_of(opened(one), "token_class"),
        "trl, token": format_of(opened(one), "token_class", "<extra_0>"),
        "raw": format_of(opened(raw), "sigmoid"),
    }
    assert {name: encoder_for(two, form).separator_text for name, form in named.items()} == {
        "template": "<extra_0>", "tags": " ки", "chat": None, "trl": None, "trl, token": "<extra_0>", "raw": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 4.<|im_end|>", "<|im_end|>"),
        ("The answer is 4.<|endoftext|>\n", "<|endoftext|>"),
        ("The answer is 4.</s>", "</s>"),
        ("The answer is 4.<|eot_id|> ", "<|eot_id|>"),
        ("The answer is 4.<extra_0>", None),
        ("<|im_end|> The answer is 4.", None),
        ("", None),
    ],
)
def test_a_token_at_the_end_of_a_text_is_found(checkpoint_with: Callable, text: str, found: str | None) -> None:
    encoder = encoder_for(checkpoint_with(), format_of(opened(checkpoint_with()), "two_class"))
    assert encoder.special_at_end(text) == found


# Skywork-o1-Open-PRM's layout


def valued(folder: Path, tokenizer_file: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(5)
    head = {
        "v_head.summary.weight": rng.standard_normal((1, 64)).astype(np.float32) / 6,
        "v_head.summary.bias": np.array([0.2], dtype=np.float32),
    }
    write_checkpoint(folder, tokenizer_file, "none", "fp32", replace=head)
    set_config(folder, architectures=["Qwen2ForPrmModel"])
    return set_tokenizer_config(folder, tokenizer_class="Qwen2Tokenizer", **changes)


@pytest.mark.parametrize("bos", ["<|endoftext|>", None])
def test_a_value_head_is_read_as_skywork_does(tmp_path: Path, tokenizer_file: Path, bos: str | None) -> None:
    folder = valued(tmp_path / "c", tokenizer_file, bos_token=bos)
    form = format_of(opened(folder), "sigmoid")
    encoder, reference = encoder_for(folder, form), theirs(folder)
    for prompt in PROMPTS:
        for steps in STEPS:
            ids, read_at = reference.encode((bos or "") + prompt + "\n"), []
            for step in steps:
                ids += [*reference.encode(step), reference.encode("\n")[-1]]
                read_at.append(len(ids) - 1)
            encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
            assert (encoded.ids.tolist(), list(encoded.read_at)) == (ids, read_at)
    with pytest.raises(CheckpointError, match="is not one token"):
        format_of(opened(folder), "sigmoid", " the tag")


def test_rewards_of_a_value_head_are_those_of_torch(tmp_path: Path, tokenizer_file: Path) -> None:
    torch = pytest.importorskip("torch", reason="the reference is torch: pip install torch")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers: pip install transformers")
    pytest.importorskip("onnxruntime", reason='exporting needs it: pip install "edge-prm[export]"')
    from safetensors.torch import load_file

    import edge_prm
    from edge_prm_export import export

    folder = valued(tmp_path / "c", tokenizer_file)
    bundle = export(str(folder), tmp_path / "out", recipe="fp32")
    steps = ["3 * 4 = 12", " 2 + 12 = 14 "]
    with edge_prm.load(bundle) as prm:
        found = prm.score("What is 2 + 3 * 4?", steps)
        encoded = Encoder(bundle / "tokenizer.json", prm.manifest).encode(Trajectory.of("What is 2 + 3 * 4?", steps))
        with prm.session("What is 2 + 3 * 4?") as session:
            assert tuple(session.push(step) for step in steps) == found.rewards
    net = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        hidden = net(torch.tensor([encoded.ids.tolist()])).last_hidden_state[0, list(encoded.read_at)]
    logits = hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
    assert found.rewards == pytest.approx(torch.sigmoid(logits)[:, 0].tolist(), abs=2e-5)
    assert found.score == min(found.rewards)
