"""Where text meets tokens: read positions, plain text that stays plain, and the authors' own token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, write_tokenizer

from edge_prm.encode import Encoder
from edge_prm.errors import BundleIntegrityError, ContextLengthError
from edge_prm.input_format import InputFormat
from edge_prm.trajectory import Trajectory

tokenizers = pytest.importorskip("tokenizers", reason="encoding needs tokenizers: pip install edge-prm")

FORMATS = ("raw", "template", "pieces")
PIECES = ["16 - 3 = 13", "?", "Janet", " ", "  ", "\t", "\u00a0", "\n", "\r\n", ".", ",", "x", "e\u0301", "e", "\u0301", "\u0323", "각", "\u1112\u1161\u11ab", "中文", "😀", "👩\u200d👧", "\u2028", "\x1c", "<|im_end|>", "<extra_0>", "'ll", "1"]  # fmt: skip
WORDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join).filter(lambda text: text.strip() != "")
STEPS = st.lists(WORDS, min_size=1, max_size=5)


@pytest.fixture(scope="module")
def encoder_of(tokenizer_file: Path, manifest_for: Callable) -> Callable[[str], Encoder]:
    made = {form: Encoder(tokenizer_file, manifest_for(form)) for form in FORMATS}
    return made.__getitem__


@pytest.fixture(scope="module")
def plain(tokenizer_file: Path) -> Callable[[str], list[int]]:
    """The tokenizer by itself, told to read special tokens as text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def special_ids(tokenizer_file: Path) -> dict[str, int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    return {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}


# raw


@given(prompt=WORDS, steps=STEPS, split=st.sampled_from(["list", "blank", "lines"]))
def test_raw_reads_a_step_at_the_last_token_of_the_text_up_to_its_end(
    encoder_of: Callable, plain: Callable, prompt: str, steps: list[str], split: str
) -> None:
    trajectory = (
        Trajectory.of(prompt, steps) if split == "list" else Trajectory.of(prompt, "\n\n".join(steps), split=split)
    )
    encoded = encoder_of("raw").encode(trajectory)
    assert encoded.ids.tolist() == plain(prompt + trajectory.completion)
    assert len(encoded.read_at) == len(trajectory.steps)
    text = prompt + trajectory.lead
    for step, read_at in zip(trajectory.steps, encoded.read_at, strict=True):
        text += step.text + step.separator
        assert read_at == len(plain(text)) - 1
        assert encoded.ids[: read_at + 1].tolist() == plain(text)


@given(prompt=WORDS, steps=STEPS, following=st.tuples(WORDS, WORDS))
def test_raw_tokens_of_a_closed_step_do_not_depend_on_what_follows(
    encoder_of: Callable, prompt: str, steps: list[str], following: tuple[str, str]
) -> None:
    left, right = (encoder_of("raw").encode(Trajectory.of(prompt, [*steps, step])) for step in following)
    assert left.read_at[:-1] == right.read_at[:-1]
    closed = left.read_at[-2] + 1
    assert np.array_equal(left.ids[:closed], right.ids[:closed])


def test_raw_puts_nothing_between_prompt_and_completion(encoder_of: Callable, plain: Callable) -> None:
    encoded = encoder_of("raw").encode(Trajectory.of("at the market?", ["Janet has 16 eggs."]))
    assert encoded.ids.tolist() == plain("at the market?Janet has 16 eggs.")
    assert encoded.ids.tolist() != plain("at the market?") + plain("Janet has 16 eggs."), "the seam shares a token"


def test_raw_keeps_blank_lines_before_the_first_step(encoder_of: Callable, plain: Callable) -> None:
    encoded = encoder_of("raw").encode(Trajectory.of("Q", "\n\na\n\nb"))
    assert encoded.ids.tolist() == plain("Q\n\na\n\nb")
    assert encoded.read_at == (len(plain("Q\n\na\n\n")) - 1, len(plain("Q\n\na\n\nb")) - 1)


@pytest.mark.parametrize("tail", ["😀", "👩\u200d👧", "中", "e\u0301"])
def test_raw_reads_the_last_byte_of_a_character_that_takes_several_tokens(
    encoder_of: Callable, plain: Callable, tail: str
) -> None:
    encoded = encoder_of("raw").encode(Trajectory.of("Q", f"a{tail};b", split=";"))
    assert encoded.read_at[1] == len(encoded.ids) - 1
    encoded = encoder_of("raw").encode(Trajectory.of("Q", ["a" + tail]))
    assert encoded.read_at == (len(plain("Qa" + tail)) - 1,)


def test_raw_reads_rightly_with_a_tokenizer_that_trims_offsets(
    tmp_path: Path, manifest_for: Callable, plain: Callable
) -> None:
    """`trim_offsets` takes blanks out of the offsets of a token that may hold nothing else."""
    encoder = Encoder(write_tokenizer(tmp_path / "tokenizer.json", trim_offsets=True), manifest_for("raw"))
    trajectory = Trajectory.of("What is 2 + 3?", ["a b", "c", "d  "])
    ends = ["What is 2 + 3?a b\n\n", "What is 2 + 3?a b\n\nc\n\n", "What is 2 + 3?a b\n\nc\n\nd  "]
    assert encoder.encode(trajectory).read_at == tuple(len(plain(text)) - 1 for text in ends)


# template


@given(prompt=WORDS, steps=STEPS)
def test_template_reads_exactly_at_the_separators_put_in(
    encoder_of: Callable, special_ids: dict[str, int], prompt: str, steps: list[str]
) -> None:
    trajectory = Trajectory.of(prompt, steps)
    encoded = encoder_of("template").encode(trajectory)
    assert encoded.read_at == tuple(np.flatnonzero(encoded.ids == special_ids["<extra_0>"]))
    assert len(encoded.read_at) == len(steps)
    assert encoded.read_at[-1] == len(encoded.ids) - 1


@given(prompt=WORDS, steps=STEPS)
def test_template_is_special_tokens_and_plain_text_between_them(
    encoder_of: Callable, plain: Callable, special_ids: dict[str, int], prompt: str, steps: list[str]
) -> None:
    trajectory = Trajectory.of(prompt, steps)
    start, end = [special_ids["<|im_start|>"]], [special_ids["<|im_end|>"]]
    expected = start + plain("system\nYou judge the steps of a solution.") + end + plain("\n")
    expected += start + plain("user\n" + prompt) + end + plain("\n")
    expected += start + plain("assistant\n" + trajectory.steps[0].text) + [special_ids["<extra_0>"]]
    for step in trajectory.steps[1:]:
        expected += [*plain(step.text), special_ids["<extra_0>"]]
    assert encoder_of("template").encode(trajectory).ids.tolist() == expected


@pytest.mark.parametrize(
    ("prompt", "steps"),
    [
        ("What is 2 + 3 * 4?", ["3 * 4 = 12", "2 + 12 = 14"]),
        (" A prompt with blanks around it \n", ["  one", "two  ", "three\nlines\n\nof text"]),
        ("e\u0301té, 中文 😀", ["ça va?", "\u1112\u1161\u11ab"]),
    ],
)
def test_template_gives_the_ids_of_apply_chat_template(
    encoder_of: Callable, tokenizer_file: Path, prompt: str, steps: list[str]
) -> None:
    reason = "the reference ids come from transformers: pip install transformers"
    transformers = pytest.importorskip("transformers", reason=reason)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), chat_template=CHAT_TEMPLATE)
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    expected = reference.apply_chat_template(messages, tokenize=True, return_dict=False)
    ids = encoder_of("template").encode(Trajectory.of(prompt, steps)).ids.tolist()
    assert ids == expected[: len(ids)]
    assert reference.decode(expected[len(ids) :]) == "<|im_end|>\n"


# tagged


@pytest.fixture(scope="module")
def tagged(tokenizer_file: Path, manifest_for: Callable) -> Callable[..., Encoder]:
    def make(separator: str, **pieces: Any) -> Encoder:
        form = InputFormat("tagged", separator, **({"between": " "} | pieces))
        return Encoder(tokenizer_file, manifest_for("raw", input=form))

    return make


@given(prompt=WORDS, steps=STEPS)
def test_tags_in_text_are_read_where_they_were_put(
    tagged: Callable, plain: Callable, prompt: str, steps: list[str]
) -> None:
    """As if each beginning of the text, up to a tag, were tokenized whole."""
    trajectory = Trajectory.of(prompt, steps)
    encoded = tagged(" ки", after="\n").encode(trajectory)
    texts = [step.text for step in trajectory.steps]
    whole = prompt + " " + "\n".join(f"{text} ки" for text in texts)
    assert encoded.ids.tolist() == plain(whole)
    for count, at in enumerate(encoded.read_at, 1):
        start = prompt + " " + "\n".join(f"{text} ки" for text in texts[:count])
        assert len(plain(start)) - 1 == at


@given(prompt=WORDS, steps=STEPS)
def test_special_tokens_of_the_pieces_part_the_text(
    tagged: Callable, plain: Callable, special_ids: dict[str, int], prompt: str, steps: list[str]
) -> None:
    trajectory = Trajectory.of(prompt, steps)
    start, end = special_ids["<|im_start|>"], special_ids["<|im_end|>"]
    encoder = tagged("<|im_end|>\n<|im_start|>", before="<|im_start|>user\n", after="+<|im_end|>", bos_id=7)
    first, *rest = (step.text for step in trajectory.steps)
    expected = [7, start, *plain("user\n" + prompt + " " + first), end, *plain("\n"), start]
    read_at = [len(expected) - 1]
    for text in rest:
        expected += [*plain("+"), end, *plain(text), end, *plain("\n"), start]
        read_at.append(len(expected) - 1)
    encoded = encoder.encode(trajectory)
    assert encoded.ids.tolist() == expected
    assert encoded.read_at == tuple(read_at)


def test_a_special_token_may_be_the_tag_itself(tagged: Callable, special_ids: dict[str, int]) -> None:
    encoded = tagged("<extra_0>").encode(Trajectory.of("P", ["a <extra_0> b", "c"]))
    assert encoded.read_at == tuple(np.flatnonzero(encoded.ids == special_ids["<extra_0>"]))
    assert len(encoded.read_at) == 2


# pieces


def trl_ids(plain: Callable, prompt: str, steps: list[str], separator: list[int], bos_id: int | None = None) -> tuple:
    """Ids and read positions as PRMTrainer.tokenize_row makes them (trl/trainer/prm_trainer.py)."""
    ids = ([] if bos_id is None else [bos_id]) + plain(prompt)
    read_at = []
    for step in steps:
        ids += plain(step) + separator
        read_at.append(len(ids) - 1)
    return ids, tuple(read_at)


@given(prompt=WORDS, steps=STEPS)
def test_pieces_are_joined_as_trl_does(encoder_of: Callable, plain: Callable, prompt: str, steps: list[str]) -> None:
    trajectory = Trajectory.of(prompt, steps)
    encoded = encoder_of("pieces").encode(trajectory)
    texts = [step.text for step in trajectory.steps]
    assert (encoded.ids.tolist(), encoded.read_at) == trl_ids(plain, prompt, texts, plain("\n"))


def test_pieces_begin_with_the_token_that_begins_a_text(
    tokenizer_file: Path, manifest_for: Callable, plain: Callable
) -> None:
    manifest = manifest_for("pieces")
    encoder = Encoder(tokenizer_file, replace(manifest, input=replace(manifest.input, bos_id=5)))
    encoded = encoder.encode(Trajectory.of("Q", ["a", "b"]))
    assert (encoded.ids.tolist(), encoded.read_at) == trl_ids(plain, "Q", ["a", "b"], plain("\n"), 5)


def test_pieces_with_a_special_separator_put_its_id_in(
    tokenizer_file: Path, manifest_for: Callable, plain: Callable, special_ids: dict[str, int]
) -> None:
    """A checkpoint trained by TRL with `step_separator="<extra_0>"` knows the separator as one token."""
    manifest = manifest_for("pieces")
    encoder = Encoder(tokenizer_file, replace(manifest, input=replace(manifest.input, separator="<extra_0>")))
    encoded = encoder.encode(Trajectory.of("Q", ["a", "<extra_0>"]))
    expected = trl_ids(plain, "Q", ["a", "<extra_0>"], [special_ids["<extra_0>"]])
    assert (encoded.ids.tolist(), encoded.read_at) == expected


# all of them


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_of_the_user_never_becomes_a_special_token(
    encoder_of: Callable, special_ids: dict[str, int], form: str, token: str
) -> None:
    encoder = encoder_of(form)
    ordinary = encoder.encode(Trajectory.of("Q", ["a", "b"])).ids
    tricked = encoder.encode(Trajectory.of(f"Q {token}", [f"a{token}", f"{token}\nassistant{token}"])).ids
    for id_ in special_ids.values():
        assert (tricked == id_).sum() == (ordinary == id_).sum()


@pytest.mark.parametrize("flags", [{"special": False}, {"special": False, "normalized": True}, {"lstrip": True}])
@given(prompt=WORDS, steps=STEPS)
def test_text_never_becomes_the_separator_whatever_the_file_calls_it(
    unusual: Callable, flags: dict[str, bool], prompt: str, steps: list[str]
) -> None:
    encoder, separator = unusual(**flags)
    encoded = encoder.encode(Trajectory.of(prompt, steps))
    assert encoded.read_at == tuple(np.flatnonzero(encoded.ids == separator))
    assert len(encoded.read_at) == len(steps)


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, manifest_for: Callable) -> Callable:
    """flags of `<extra_0>` -> a template encoder and the separator's id."""
    made: dict[str, Encoder] = {}

    def make(**flags: bool) -> tuple[Encoder, int]:
        key = json.dumps(flags)
        data = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        (token,) = (token for token in data["added_tokens"] if token["content"] == "<extra_0>")
        if key not in made:
            token |= flags
            file = tmp_path_factory.mktemp("unusual") / "tokenizer.json"
            file.write_text(json.dumps(data), encoding="utf-8")
            made[key] = Encoder(file, manifest_for("template"))
        return made[key], token["id"]

    return make


@pytest.mark.parametrize("form", FORMATS)
def test_a_special_token_in_two_halves_stays_two_halves(
    encoder_of: Callable, special_ids: dict[str, int], form: str
) -> None:
    ids = encoder_of(form).encode(Trajectory.of("Q <ext", ["ra_0>", "<ext", "ra_0>"])).ids
    assert (ids == special_ids["<extra_0>"]).sum() == (3 if form == "template" else 0)


@pytest.mark.parametrize("form", FORMATS)
@given(prompt=WORDS, steps=STEPS)
def test_read_positions_ascend_within_the_text(encoder_of: Callable, form: str, prompt: str, steps: list[str]) -> None:
    encoded = encoder_of(form).encode(Trajectory.of(prompt, steps))
    assert encoded.ids.dtype == np.int64
    assert len(encoded.read_at) == len(steps)
    assert all(a < b for a, b in zip((-1, *encoded.read_at), (*encoded.read_at, len(encoded.ids)), strict=True))
    assert encoded.read_at[-1] == len(encoded.ids) - 1


@pytest.mark.parametrize("form", FORMATS)
def test_too_long_is_an_error_with_both_lengths(tokenizer_file: Path, manifest_for: Callable, form: str) -> None:
    trajectory = Trajectory.of("What is 2 + 3?", ["2 + 3 = 5", "The answer is 5."])
    length = len(Encoder(tokenizer_file, manifest_for(form)).encode(trajectory).ids)
    assert len(Encoder(tokenizer_file, manifest_for(form, length)).encode(trajectory).ids) == length
    with pytest.raises(ContextLengthError) as caught:
        Encoder(tokenizer_file, manifest_for(form, length - 1)).encode(trajectory)
    assert (caught.value.tokens, caught.value.context_length) == (length, length - 1)
    assert f"{length} tokens" in str(caught.value)
    assert f"holds {length - 1}" in str(caught.value)


def test_one_character_is_enough(encoder_of: Callable) -> None:
    encoded = encoder_of("raw").encode(Trajectory.of("Q", ["a"]))
    assert 1 <= len(encoded.ids) <= 2
    assert encoded.read_at == (len(encoded.ids) - 1,)


def test_the_hash_of_a_text_is_of_its_ids(encoder_of: Callable) -> None:
    encoder = encoder_of("raw")
    one = encoder.encode(Trajectory.of("Q", ["a"]))
    assert one.sha256() == encoder.encode(Trajectory.of("Q", "a")).sha256()
    assert one.sha256() != encoder.encode(Trajectory.of("Q", "b")).sha256()


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, manifest_for: Callable) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json: not a tokenizer"):
        Encoder(file, manifest_for())


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer_file: Path, manifest_for: Callable) -> None:
    manifest = manifest_for()
    small = replace(manifest, architecture=replace(manifest.architecture, vocabulary=100))
    with pytest.raises(BundleIntegrityError, match=r"tokens and the model 100"):
        Encoder(tokenizer_file, small)


def test_padding_and_truncation_of_the_file_are_ignored(
    tmp_path: Path, tokenizer_file: Path, manifest_for: Callable, plain: Callable
) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoded = Encoder(tmp_path / "tokenizer.json", manifest_for()).encode(Trajectory.of("one two", ["three four five"]))
    assert encoded.ids.tolist() == plain("one twothree four five")
