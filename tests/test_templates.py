"""Chat templates, tags and pieces: token ids equal those of the authors' code, or the template is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from field_tokenizers import (
    CHATML,
    LINES,
    PROMPTS,
    RAW_TOKENIZERS,
    STEPS,
    TEMPLATES,
    TOKENIZERS,
    WORDS,
    chat_ids,
    encoder_for,
    encoder_of_kind,
    set_tokenizer_config,
    theirs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import opened
from tiny_formats import format_of

from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import CheckpointError, InputError
from edge_prm.trajectory import Trajectory

pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')


# templates, token by token


def encoded_texts(encoder: Encoder) -> Iterator[tuple[str, tuple[str, ...], Encoded]]:
    """(prompt, steps, both encoded) of each text."""
    for prompt in PROMPTS:
        for steps in STEPS:
            yield prompt, steps, encoder.encode(Trajectory.of(prompt, list(steps)))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_template_gives_the_ids_of_apply_chat_template(
    checkpoint_with: Callable, tokenizer: str, template: str
) -> None:
    folder = checkpoint_with(tokenizer, chat_template=TEMPLATES[template])
    encoder, reference = encoder_of_kind(folder, "two_class"), theirs(folder)
    separator = reference.convert_tokens_to_ids("<extra_0>")
    for prompt, steps, encoded in encoded_texts(encoder):
        assert encoded.ids.tolist() == chat_ids(reference, prompt, steps)
        assert encoded.read_at == tuple(np.flatnonzero(encoded.ids == separator))


@settings(max_examples=40)
@given(
    template=st.sampled_from([*TEMPLATES]),
    tokenizer=st.sampled_from([*TOKENIZERS]),
    prompt=WORDS,
    steps=st.lists(LINES, min_size=1, max_size=4),
)
def test_any_text_gives_the_ids_of_apply_chat_template(
    checkpoint_with: Callable, template: str, tokenizer: str, prompt: str, steps: list[str]
) -> None:
    folder = checkpoint_with(tokenizer, chat_template=TEMPLATES[template])
    trajectory = Trajectory.of(prompt, steps)
    texts = tuple(step.text for step in trajectory.steps)
    encoded = encoder_of_kind(folder, "two_class").encode(trajectory)
    assert encoded.ids.tolist() == chat_ids(theirs(folder), prompt, texts)


@pytest.mark.parametrize("template", ["plain", "trim", "strip left", "strip right", "strip newlines", "bos", "date"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_chat_of_judged_turns_gives_the_ids_of_apply_chat_template(
    checkpoint_with: Callable, tokenizer: str, template: str
) -> None:
    """RLHFlow's way: each step is a turn of the user, and judged where the assistant's answer begins."""
    folder = checkpoint_with(tokenizer, chat_template=TEMPLATES[template])
    encoder, reference = encoder_of_kind(folder, "token_pair"), theirs(folder)
    for prompt, steps, encoded in encoded_texts(encoder):
        chat: list[dict[str, str]] = []
        for index, step in enumerate(steps):
            chat.append({"role": "user", "content": step if index else f"{prompt} {step}"})
            asked = reference.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            assert encoded.ids[: encoded.read_at[index] + 1].tolist() == list(asked)
            chat.append({"role": "assistant", "content": "+"})


LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_an_answer_that_shares_a_token_with_a_blank_is_read_before_the_blank(checkpoint_with: Callable) -> None:
    """Llama 2's template opens no answer by itself; the judgement is of the token before `Ġ+`."""
    folder = checkpoint_with(chat_template=LLAMA_2)
    form = format_of(opened(folder), "token_pair", answer="Ġ+")
    encoder, reference = encoder_for(folder, form), theirs(folder)
    good = reference.convert_tokens_to_ids("Ġ+")
    for prompt in PROMPTS:
        for steps in STEPS:
            encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
            chat: list[dict[str, str]] = []
            for index, step in enumerate(steps):
                chat.append({"role": "user", "content": step if index else f"{prompt} {step}"})
                chat.append({"role": "assistant", "content": "+"})
                ids = list(reference.apply_chat_template(chat, return_dict=False))
                assert ids[-2] == good
                assert encoded.ids[: encoded.read_at[index] + 1].tolist() == ids[:-2]
    with pytest.raises(CheckpointError, match=r"the answer '\+' is the token \['Ġ\+'\] and not '\+'; .*--good-token"):
        format_of(opened(folder), "token_pair", answer="+")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_tags_give_the_ids_of_the_text(checkpoint_with: Callable, tokenizer: str) -> None:
    """Math-Shepherd's way: one text, a tag closes each step."""
    folder = checkpoint_with(tokenizer)
    form = format_of(opened(folder), "token_pair", " =", " ", "\n")
    encoder, reference = encoder_for(folder, form), theirs(folder)
    for prompt in PROMPTS:
        for steps in STEPS:
            encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
            text = prompt + " " + "\n".join(f"{step} =" for step in steps)
            assert encoded.ids.tolist() == reference(text)["input_ids"]
            for count, at in enumerate(encoded.read_at, 1):
                start = prompt + " " + "\n".join(f"{step} =" for step in steps[:count])
                assert encoded.ids[: at + 1].tolist() == reference(start)["input_ids"]


@pytest.mark.parametrize("separator", ["\n", "<extra_0>"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_pieces_give_the_ids_of_trl(checkpoint_with: Callable, tokenizer: str, separator: str) -> None:
    """PRMTrainer.tokenize_row: bos_token_id, prompt, steps and separators, each tokenized by itself."""
    folder = checkpoint_with(tokenizer, "token_class")
    form = format_of(opened(folder), "token_class", separator)
    encoder, reference = encoder_for(folder, form), theirs(folder)
    for prompt in PROMPTS:
        for steps in STEPS:
            encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
            ids, read_at = [reference.bos_token_id, *reference(prompt, add_special_tokens=False)["input_ids"]], []
            for step in steps:
                ids += reference(step, add_special_tokens=False)["input_ids"]
                ids += reference.encode(separator, add_special_tokens=False)
                read_at.append(len(ids) - 1)
            assert (encoded.ids.tolist(), list(encoded.read_at)) == (ids, read_at)


@pytest.mark.parametrize("tokenizer", RAW_TOKENIZERS)
def test_raw_text_gives_the_ids_of_the_text(checkpoint_with: Callable, tokenizer: str) -> None:
    folder = checkpoint_with(tokenizer, "sigmoid")
    encoder, reference = encoder_of_kind(folder, "sigmoid"), theirs(folder)
    for prompt in PROMPTS:
        for steps in STEPS:
            trajectory = Trajectory.of(prompt, list(steps))
            encoded = encoder.encode(trajectory)
            assert encoded.ids.tolist() == reference(prompt + trajectory.completion)["input_ids"]
            text = prompt
            for step, at in zip(trajectory.steps, encoded.read_at, strict=True):
                text += step.text + step.separator
                assert encoded.ids[: at + 1].tolist() == reference(text)["input_ids"]


# templates that are refused, or texts


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML.replace("CONTENT", "m.content | upper"), "does not show user and assistant"),
        (CHATML.replace("CONTENT", "m.content | e"), "rewrites the text|as they are"),
        (CHATML.replace("CONTENT", "m.content | tojson"), "does not show|turns the message|rewrites the text"),
        (CHATML.replace("CONTENT", "m.content | replace('  ', ' ')"), "turns the message|rewrites the text"),
        (CHATML.replace("CONTENT", "m.content | truncate(50)"), "rewrites the text"),
        (CHATML.replace("CONTENT", "m.content.split('\\n\\n')[-1]"), "turns the message|rewrites the text"),
        (CHATML.replace("CONTENT", "m.content[1:]"), "does not show"),
        (CHATML.replace("CONTENT", "m.content.strip('.')"), "rewrites the text"),
    ],
)
def test_a_template_that_rewrites_messages_is_refused(checkpoint_with: Callable, template: str, said: str) -> None:
    folder = checkpoint_with(chat_template=template)
    with pytest.raises(CheckpointError, match=said):
        format_of(opened(folder), "two_class")


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content + ('' if loop.last else ' ') }}",
        "{{ (m.content | trim) if loop.last else m.content }}",
        "{{ m.content if loop.last else (m.content | trim) }}",
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>{% endif %}{{ m.content }}",
        "{% if loop.index > 3 %}!{% endif %}{{ m.content }}",
    ],
)
def test_a_template_that_writes_the_last_turn_otherwise_is_refused(checkpoint_with: Callable, body: str) -> None:
    template = f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}:{body}<|im_end|>{{% endfor %}}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    folder = checkpoint_with(chat_template=template)
    with pytest.raises(CheckpointError, match="its chat template"):
        format_of(opened(folder), "token_pair")


def test_text_that_a_template_would_rewrite_is_refused_when_it_comes(checkpoint_with: Callable) -> None:
    """Qwen3's template takes the thinking out of an answer."""
    content = "(m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content)"
    folder = checkpoint_with(chat_template=CHATML.replace("CONTENT", content))
    form = format_of(opened(folder), "two_class")
    assert (form.chat.refused, form.chat.trim_user, form.chat.trim_assistant) == (("</think>",), "", "left-newlines")
    encoder = encoder_for(folder, form)
    encoded = encoder.encode(Trajectory.of("Q", ["a", "b"]))
    assert encoded.ids.tolist() == chat_ids(theirs(folder), "Q", ("a", "b"))
    with pytest.raises(InputError, match="step 1 holds '</think>', and this checkpoint's chat template rewrites"):
        encoder.encode(Trajectory.of("Q", ["a", "<think>b</think>c"]))


def test_a_string_that_only_this_template_knows_is_refused_when_it_comes(checkpoint_with: Callable) -> None:
    folder = checkpoint_with(chat_template=CHATML.replace("CONTENT", "m.content | replace('@@secret', '')"))
    assert format_of(opened(folder), "two_class").chat.refused == ("@@secret",)


def test_a_date_in_a_template_is_kept_and_said(checkpoint_with: Callable) -> None:
    form = format_of(opened(checkpoint_with(chat_template=TEMPLATES["date"])), "two_class")
    assert form.chat.dated.startswith(form.before[:4])
    assert format_of(opened(checkpoint_with()), "two_class").chat.dated == ""


def test_templates_are_found_where_transformers_finds_them(checkpoint_with: Callable, tmp_path: Path) -> None:
    def marked(mark: str) -> str:
        return mark + CHATML.replace("CONTENT", "m.content")

    folder = Path(shutil.copytree(checkpoint_with(chat_template=KeyError), tmp_path / "c"))

    def same(mark: str) -> None:
        assert format_of(opened(folder), "two_class").before.startswith(mark)
        assert theirs(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith(mark)

    with pytest.raises(CheckpointError, match=r"has no chat template, .*--separator"):
        format_of(opened(folder), "token_pair")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": marked("processor ")}))
    assert format_of(opened(folder), "two_class").before.startswith("processor ")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": marked("list ")}]
    set_tokenizer_config(folder, chat_template=named)
    same("list ")
    set_tokenizer_config(folder, chat_template=marked("config "))
    same("config ")
    (folder / "chat_template.jinja").write_text(marked("file "))
    same("file ")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    same("file ")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"no chat template named default \(it has 'tool_use'\)"):
        format_of(opened(folder), "two_class")
