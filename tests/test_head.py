"""A checkpoint's reward head and input format follow from what it holds, and are never guessed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    CHAT_TEMPLATE,
    opened,
    set_config,
    write_reward_head,
    write_safetensors,
    write_torch_zip,
)
from tiny_formats import format_of

from edge_prm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    HeadNotFoundError,
    InputError,
    UnsafePickleError,
)
from edge_prm.head import Head
from edge_prm.notices import AmbiguousHeadWarning
from edge_prm_export.checkpoint.conventions import Given, choose
from edge_prm_export.checkpoint.files import Checkpoint, open_checkpoint
from edge_prm_export.checkpoint.head import read_head

ml_dtypes = pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')


# heads


@pytest.mark.parametrize(
    ("head", "shapes"), [("sigmoid", [(1, 64)]), ("two_class", [(64, 64), (2, 64)]), ("token_class", [(2, 64)])]
)
def test_the_kind_of_head_is_told_by_its_tensors(write: Callable, head: str, shapes: list[tuple[int, int]]) -> None:
    found = read_head(opened(write(head)))
    assert isinstance(found, Head)
    assert found.kind == head
    assert [weight.shape for weight, _ in found.layers] == shapes
    assert [bias.shape for _, bias in found.layers] == [(outputs,) for outputs, _ in shapes]


def test_a_missing_head_says_where_it_was_looked_for(write: Callable) -> None:
    with pytest.raises(HeadNotFoundError) as caught:
        read_head(opened(write("none", tied=False)))
    for place in ("reward_head.pt", "score.0.weight", "score.2.weight", "score.weight", "v_head.summary.weight"):
        assert place in str(caught.value)


@pytest.mark.parametrize("head", ["two_class", "token_class"])
def test_a_head_without_biases_has_zeros(write: Callable, head: str) -> None:
    found = read_head(opened(write(head, drop=["score.0.bias", "score.2.bias", "score.bias"])))
    assert all(not bias.any() for _, bias in found.layers)


def test_half_a_head_is_named(write: Callable) -> None:
    checkpoint = opened(write("two_class", drop=["score.2.weight"]))
    with pytest.raises(CheckpointError, match=r"score\.2\.weight is missing"):
        read_head(checkpoint)


@pytest.mark.parametrize(("head", "name"), [("token_class", "score"), ("two_class", "score.2")])
def test_a_head_of_three_classes_is_refused_by_name(write: Callable, head: str, name: str) -> None:
    folder = write(head, replace={f"{name}.weight": np.ones((3, 64), dtype=np.float32)})
    with pytest.raises(
        CheckpointError, match=rf"{name}\.weight has shape \[3, 64\], a head of 3 classes; .* not known"
    ):
        read_head(opened(folder))
    set_config(folder, id2label={"0": "negative", "1": "neutral", "2": "positive"})
    with pytest.raises(CheckpointError, match=r"3 classes \(negative, neutral, positive\)"):
        read_head(opened(folder))


# outcome models, and what classes mean


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("architecture", ["Qwen2ForSequenceClassification", "LlamaForSequenceClassification"])
def test_a_sequence_classifier_is_an_outcome_model(write: Callable, outputs: int, architecture: str) -> None:
    folder = write("token_class", replace={"score.weight": np.ones((outputs, 64), dtype=np.float32)})
    set_config(folder, architectures=[architecture])
    with pytest.raises(CheckpointError, match=rf"outcome reward model \({architecture}, .* finished solution"):
        read_head(opened(folder))


@pytest.mark.parametrize(("head", "name"), [("token_class", "score"), ("two_class", "score.2")])
def test_a_head_of_one_output_is_an_outcome_model(write: Callable, head: str, name: str) -> None:
    folder = write(head, replace={f"{name}.weight": np.ones((1, 64), dtype=np.float32)})
    with pytest.raises(CheckpointError, match=rf"outcome reward model .*{name}\.weight with 1 output\)"):
        read_head(opened(folder))


@pytest.mark.parametrize("architectures", [None, [], ["Qwen2ForCausalLM"], "Qwen2ForTokenClassification"])
def test_a_classifier_of_an_unnamed_kind_is_taken_for_trls_with_a_warning(
    write: Callable, architectures: object
) -> None:
    folder = set_config(write("token_class"), architectures=architectures)
    with pytest.warns(AmbiguousHeadWarning, match="taken for the head of TRL's PRMTrainer"):
        assert read_head(opened(folder)).kind == "token_class"


def test_a_token_classifier_is_read_without_a_warning(write: Callable, recwarn: pytest.WarningsRecorder) -> None:
    assert read_head(opened(write("token_class"))).kind == "token_class"
    assert not recwarn.list


@pytest.mark.parametrize("head", ["token_class", "two_class"])
@pytest.mark.parametrize(
    ("labels", "turned"),
    [
        ({"0": "LABEL_0", "1": "LABEL_1"}, False),
        ({"0": "incorrect", "1": "correct"}, False),
        ({"0": "-", "1": "+"}, False),
        ({"0": "False", "1": "True"}, False),
        ({"0": "correct", "1": "incorrect"}, True),
        ({"0": "GOOD", "1": "BAD"}, True),
        ({"1": "negative", "0": "positive"}, True),
        ({"0": "+", "1": "-"}, True),
        ({"0": "LABEL_1", "1": "LABEL_0"}, True),
    ],
)
def test_the_good_class_is_the_one_that_id2label_names(
    write: Callable, head: str, labels: dict[str, str], turned: bool
) -> None:
    folder = write(head)
    plain = read_head(opened(folder)).layers
    found = read_head(opened(set_config(folder, id2label=labels))).layers
    for one, other in zip(plain[:-1], found[:-1], strict=True):
        assert np.array_equal(one[0], other[0])
    for one, other in zip(plain[-1], found[-1], strict=True):
        assert np.array_equal(one[::-1] if turned else one, other)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "correct", "1": "right"},
        {"0": "cat", "1": "dog"},
        {"0": "correct"},
        {"0": "bad", "1": "neutral"},
        {"0": "incorrect", "1": "correct", "2": "neutral"},
        {"0": "correct", "1": "incorrect", "2": "neutral"},
    ],
)
def test_classes_of_unknown_meaning_are_refused(write: Callable, labels: dict[str, str]) -> None:
    folder = set_config(write("token_class"), id2label=labels)
    with pytest.raises(CheckpointError, match="which of the two classes is the good one is not known"):
        read_head(opened(folder))


# value heads, and two heads

VALUE = np.linspace(-1, 1, 64, dtype=np.float32)[None]


def test_a_value_head_is_a_sigmoid_head(write: Callable) -> None:
    bias = np.array([0.5], dtype=np.float32)
    folder = write("none", replace={"v_head.summary.weight": VALUE, "v_head.summary.bias": bias})
    head = read_head(opened(folder))
    assert head.kind == "sigmoid"
    assert np.array_equal(head.layers[0][0], VALUE)
    assert head.layers[0][1].tolist() == [0.5]
    form = format_of(opened(folder), head.kind)
    assert (form.format, form.separator, form.between) == ("pieces", "\n", "\n")


def test_a_value_head_of_tokens_is_refused_by_name(write: Callable) -> None:
    with pytest.raises(CheckpointError, match=r"v_head\.weight, .*every token .*v_head\.summary\.weight"):
        read_head(opened(write("none", replace={"v_head.weight": VALUE})))


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("two_class", ["score.0.weight", "score.weight"]),
        ("two_class", ["reward_head.pt", "score.0.weight"]),
        ("token_class", ["reward_head.pt", "score.weight"]),
        ("token_class", ["score.weight", "v_head.summary.weight"]),
        ("sigmoid", ["reward_head.pt", "v_head.summary.weight"]),
        ("sigmoid", ["reward_head.pt", "score.0.weight", "score.weight", "v_head.summary.weight"]),
    ],
)
def test_two_heads_are_an_error_that_names_both(write: Callable, head: str, names: list[str]) -> None:
    shapes = {"score.0.weight": (64, 64), "score.weight": (2, 64), "v_head.summary.weight": (1, 64)}
    folder = write(head, replace={name: np.ones(shapes[name], dtype=np.float32) for name in names if name in shapes})
    if "reward_head.pt" in names:
        write_reward_head(folder / "reward_head.pt", np.ones((1, 64), dtype=np.float32), None)
    with pytest.raises(CheckpointError) as caught:
        read_head(opened(folder))
    assert f"more than one reward head: {' and '.join(names)};" in str(caught.value)


def test_a_stray_file_is_no_head(write: Callable) -> None:
    folder = write("sigmoid")
    write_safetensors(folder / "old_head.safetensors", {"score.weight": np.ones((2, 64), dtype=np.float32)})
    write_reward_head(folder / "reward_head_old.pt", np.ones((1, 64), dtype=np.float32), None)
    assert read_head(opened(folder)).kind == "sigmoid"


# pairs of tokens


PAIR = ("a", "b")


@pytest.mark.parametrize(
    ("config", "stale", "name"),
    [
        ({"tie_word_embeddings": True}, True, "model.embed_tokens.weight"),
        ({"tie_word_embeddings": True}, False, "model.embed_tokens.weight"),
        ({"tie_word_embeddings": False}, True, "lm_head.weight"),
        ({"tie_word_embeddings": KeyError}, True, "lm_head.weight"),
        ({"tie_word_embeddings": KeyError, "model_type": "gemma2"}, True, "model.embed_tokens.weight"),
        ({"tie_word_embeddings": KeyError, "model_type": "gemma2"}, False, "model.embed_tokens.weight"),
    ],
)
def test_a_tie_decides_which_matrix_gives_logits(
    write: Callable, config: dict[str, Any], stale: bool, name: str
) -> None:
    folder = set_config(write("none", tied=not stale), **config)
    checkpoint = open_checkpoint(str(folder), native=False)
    head = read_head(checkpoint, PAIR)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bad, good = tokenizer.token_to_id("b"), tokenizer.token_to_id("a")
    assert np.array_equal(head.layers[0][0], checkpoint.tensor(name)[[bad, good]])


@pytest.mark.parametrize("tie", [False, KeyError])
def test_a_missing_output_matrix_is_not_made_up(write: Callable, tie: object) -> None:
    folder = set_config(write("none"), tie_word_embeddings=tie)
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight is missing, .*tie_word_embeddings is false or left out"
    ):
        read_head(opened(folder), PAIR)


def test_a_tie_that_is_no_truth_is_named(write: Callable) -> None:
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings of config\.json is 'yes'"):
        read_head(opened(set_config(write("none"), tie_word_embeddings="yes")), PAIR)


def test_one_token_is_no_pair(write: Callable) -> None:
    with pytest.raises(InputError, match="are both 'a'"):
        read_head(opened(write("none")), ("a", "a"))


def test_a_reward_head_without_bias_has_zero(write: Callable) -> None:
    folder = write()
    write_reward_head(folder / "reward_head.pt", np.ones((1, 64), dtype=np.float32), None)
    assert read_head(opened(folder)).layers[0][1].tolist() == [0]


@pytest.mark.parametrize("shape", [(1, 63), (2, 64), (64,), (64, 1)])
def test_a_reward_head_of_another_shape_is_named(write: Callable, shape: tuple[int, ...]) -> None:
    folder = write()
    write_reward_head(folder / "reward_head.pt", np.ones(shape, dtype=np.float32), np.ones(1, dtype=np.float32))
    with pytest.raises(CheckpointError, match=r"reward_head\.pt has shapes .*Linear\(64, 1\) was expected"):
        read_head(opened(folder))


def test_a_reward_head_that_is_no_number_is_refused(write: Callable) -> None:
    folder = write()
    weight = np.full((1, 64), np.nan, dtype=np.float32)
    write_reward_head(folder / "reward_head.pt", weight, np.ones(1, dtype=np.float32))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        read_head(opened(folder))


def test_a_hostile_reward_head_is_refused(write: Callable) -> None:
    folder = write()
    write_torch_zip(folder / "reward_head.pt", b"\x80\x02cposix\nsystem\n.")
    with pytest.raises(UnsafePickleError, match=r"posix\.system"):
        read_head(opened(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_an_lm_head_is_no_reward_head(write: Callable, tied: bool) -> None:
    checkpoint = opened(write(tied=tied))
    assert ("lm_head.weight" in checkpoint.tensor_names) is not tied
    assert read_head(checkpoint).kind == "sigmoid"


def test_code_in_the_checkpoint_is_never_imported(write: Callable, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason='exporting needs it: pip install "edge-prm[export]"')
    from edge_prm_export import export

    folder = write("two_class")
    sentinel = tmp_path / "it-ran"
    for name in ("modeling_prm", "configuration_prm", "__init__"):
        (folder / f"{name}.py").write_text(f"open({str(sentinel)!r}, 'w').close()\nclass PRM: ...\n")
    set_config(folder, auto_map={"AutoModel": "modeling_prm.PRM", "AutoConfig": "configuration_prm.PRM"})
    export(str(folder), tmp_path / "bundle", recipe="fp32")
    assert not sentinel.exists()
    assert "modeling_prm" not in sys.modules


# conventions


def test_each_head_has_its_format_of(write: Callable) -> None:
    formats = {head: format_of(opened(write(head)), head) for head in ("sigmoid", "two_class", "token_class")}
    assert {head: (f.format, f.separator) for head, f in formats.items()} == {
        "sigmoid": ("raw", "\n\n"),
        "two_class": ("template", "<extra_0>"),
        "token_class": ("pieces", "\n"),
    }
    assert formats["two_class"].before.endswith("<|im_start|>user\n")
    assert formats["two_class"].between == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_separator_can_be_chosen(write: Callable) -> None:
    checkpoint = opened(write("two_class"))
    assert format_of(checkpoint, "token_class", "\n\n").separator == "\n\n"
    chosen = format_of(checkpoint, "two_class", "<|endoftext|>")
    assert chosen.separator_id != format_of(checkpoint, "two_class").separator_id
    with pytest.raises(CheckpointError, match=r"<step>.*--separator"):
        format_of(checkpoint, "two_class", "<step>")
    with pytest.raises(CheckpointError, match="blank lines"):
        format_of(checkpoint, "sigmoid", "<extra_0>")


def set_tokenizer_config(folder: Path, **changes: Any) -> Checkpoint:
    config = {"bos_token": None, "eos_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE} | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return opened(folder)


def test_a_template_file_goes_before_the_one_in_the_config(write: Callable) -> None:
    folder = write("two_class")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert format_of(opened(folder), "two_class").before == "[user]"


def test_the_default_of_several_templates_is_taken(write: Callable) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
    checkpoint = set_tokenizer_config(write("two_class"), chat_template=named)
    assert format_of(checkpoint, "two_class").between == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("bos", ["<|endoftext|>", {"content": "<|endoftext|>", "special": True}])
def test_a_token_that_begins_a_text_is_put_before_the_pieces(write: Callable, bos: object) -> None:
    from tokenizers import Tokenizer

    folder = write("token_class")
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|endoftext|>")
    assert format_of(set_tokenizer_config(folder, bos_token=bos), "token_class").bos_id == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ messages", "cannot be rendered"),
        ("{{ raise_exception('only system') }}", "only system"),
        ("{{ messages[0].content + 1 }}", "cannot be rendered"),
        ("{{ 1 / 0 }}", "cannot be rendered"),
        ([7, {"name": "default"}], "no chat template"),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered|does not show"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "in this order"),
        ("{{ messages[0].content }}", "does not show user and assistant once"),
        ("{{ messages[0].content }}{{ messages[0].content }}{{ messages[1].content }}", "once"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(write: Callable, template: str | None, said: str) -> None:
    checkpoint = set_tokenizer_config(write("two_class"), chat_template=template)
    with pytest.raises(CheckpointError, match=said):
        format_of(checkpoint, "two_class")


def test_a_template_that_is_no_text_is_named(write: Callable) -> None:
    folder = write("two_class")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        format_of(opened(folder), "two_class")


@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_an_empty_separator_is_refused(write: Callable, head: str) -> None:
    with pytest.raises(InputError, match="separator is empty"):
        choose(opened(write(head)), Given(separator=""))


def test_a_two_class_checkpoint_without_tokenizer_is_named(write: Callable) -> None:
    folder = write("two_class")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer\.json is missing"):
        format_of(opened(folder), "two_class")
