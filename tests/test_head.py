"""A checkpoint's reward head and input format are told by what it holds, and never guessed."""

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
    write_torch_zip,
)

from edge_prm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    HeadNotFoundError,
    InputError,
    UnsafePickleError,
)
from edge_prm_export.checkpoint import Checkpoint
from edge_prm_export.head import RewardHead, read_head
from edge_prm_export.template import input_format

ml_dtypes = pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')


# heads


@pytest.mark.parametrize(
    ("head", "shapes"), [("sigmoid", [(1, 64)]), ("two_class", [(64, 64), (2, 64)]), ("token_class", [(2, 64)])]
)
def test_the_kind_of_head_is_told_by_its_tensors(write: Callable, head: str, shapes: list[tuple[int, int]]) -> None:
    found = read_head(opened(write(head)))
    assert isinstance(found, RewardHead)
    assert found.kind == head
    assert [weight.shape for weight, _ in found.layers] == shapes
    assert [bias.shape for _, bias in found.layers] == [(outputs,) for outputs, _ in shapes]


def test_a_missing_head_says_where_it_was_looked_for(write: Callable) -> None:
    with pytest.raises(HeadNotFoundError) as caught:
        read_head(opened(write("none", tied=False)))
    for place in ("reward_head.pt", "score.0.weight", "score.2.weight", "score.weight"):
        assert place in str(caught.value)


@pytest.mark.parametrize("head", ["two_class", "token_class"])
def test_a_head_without_biases_has_zeros(write: Callable, head: str) -> None:
    found = read_head(opened(write(head, drop=["score.0.bias", "score.2.bias", "score.bias"])))
    assert all(not bias.any() for _, bias in found.layers)


def test_half_a_head_is_named(write: Callable) -> None:
    checkpoint = opened(write("two_class", drop=["score.2.weight"]))
    with pytest.raises(CheckpointError, match=r"score\.2\.weight is missing"):
        read_head(checkpoint)


def test_a_head_of_three_classes_is_refused(write: Callable) -> None:
    checkpoint = opened(write("token_class", replace={"score.weight": np.ones((3, 64), dtype=np.float32)}))
    with pytest.raises(CheckpointError, match=r"score\.weight has shape \[3, 64\]"):
        read_head(checkpoint)


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


def test_each_head_has_its_input_format(write: Callable) -> None:
    formats = {head: input_format(opened(write(head)), head) for head in ("sigmoid", "two_class", "token_class")}
    assert {head: (f.format, f.separator) for head, f in formats.items()} == {
        "sigmoid": ("raw", "\n\n"),
        "two_class": ("template", "<extra_0>"),
        "token_class": ("pieces", "\n"),
    }
    assert formats["two_class"].before.endswith("<|im_start|>user\n")
    assert formats["two_class"].between == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_separator_can_be_chosen(write: Callable) -> None:
    checkpoint = opened(write("two_class"))
    assert input_format(checkpoint, "token_class", "\n\n").separator == "\n\n"
    chosen = input_format(checkpoint, "two_class", "<|endoftext|>")
    assert chosen.separator_id != input_format(checkpoint, "two_class").separator_id
    with pytest.raises(CheckpointError, match=r"<step>.*--separator"):
        input_format(checkpoint, "two_class", "<step>")
    with pytest.raises(CheckpointError, match="blank lines"):
        input_format(checkpoint, "sigmoid", "<extra_0>")


def set_tokenizer_config(folder: Path, **changes: Any) -> Checkpoint:
    config = {"bos_token": None, "eos_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE} | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return opened(folder)


def test_a_template_file_goes_before_the_one_in_the_config(write: Callable) -> None:
    folder = write("two_class")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert input_format(opened(folder), "two_class").before == "[user]"


def test_the_default_of_several_templates_is_taken(write: Callable) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
    checkpoint = set_tokenizer_config(write("two_class"), chat_template=named)
    assert input_format(checkpoint, "two_class").between == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("bos", ["<|endoftext|>", {"content": "<|endoftext|>", "special": True}])
def test_a_token_that_begins_a_text_is_put_before_the_pieces(write: Callable, bos: object) -> None:
    from tokenizers import Tokenizer

    folder = write("token_class")
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|endoftext|>")
    assert input_format(set_tokenizer_config(folder, bos_token=bos), "token_class").bos_id == expected


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
        input_format(checkpoint, "two_class")


def test_a_template_that_is_no_text_is_named(write: Callable) -> None:
    folder = write("two_class")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        input_format(opened(folder), "two_class")


@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_an_empty_separator_is_refused(write: Callable, head: str) -> None:
    with pytest.raises(InputError, match="separator is empty"):
        input_format(opened(write(head)), head, "")


def test_a_two_class_checkpoint_without_tokenizer_is_named(write: Callable) -> None:
    folder = write("two_class")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer\.json is missing"):
        input_format(opened(folder), "two_class")
