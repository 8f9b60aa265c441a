"""A checkpoint's conventions, from its own files to token ids: they equal those of transformers, or are refused."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHAT_TEMPLATE, opened, set_config, write_checkpoint, write_tokenizer
from tiny_formats import format_of

from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import CheckpointError, InputError
from edge_prm.input_format import InputFormat
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.tokenizer import open_tokenizer

ml_dtypes = pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')

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


@pytest.fixture(scope="module")
def tokenizer_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = TOKENIZERS[name](folder / f"{len(made)}.json")
        return made[name]

    return make


@pytest.fixture(scope="module")
def checkpoint_with(tmp_path_factory: pytest.TempPathFactory, tokenizer_named: Callable[[str], Path]) -> Callable:
    """(tokenizer, head, settings) -> folder; not to be changed."""
    made: dict[str, Path] = {}

    def make(tokenizer: str = "byte level", head: str = "two_class", **changes: Any) -> Path:
        key = json.dumps([tokenizer, head, changes], default=str)
        if key not in made:
            folder = write_checkpoint(tmp_path_factory.mktemp("c") / "tiny", tokenizer_named(tokenizer), head)
            made[key] = set_tokenizer_config(folder, **changes)
        return made[key]

    return make


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


# templates, token by token


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_template_gives_the_ids_of_apply_chat_template(
    checkpoint_with: Callable, tokenizer: str, template: str
) -> None:
    folder = checkpoint_with(tokenizer, chat_template=TEMPLATES[template])
    encoder, reference = encoder_of_kind(folder, "two_class"), theirs(folder)
    for prompt in PROMPTS:
        for steps in STEPS:
            encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
            assert encoded.ids.tolist() == chat_ids(reference, prompt, steps)
            separator = reference.convert_tokens_to_ids("<extra_0>")
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
    for prompt in PROMPTS:
        for steps in STEPS:
            encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
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


RAW_TOKENIZERS = [name for name in TOKENIZERS if name not in ("unigram", "strips, not special")]


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
