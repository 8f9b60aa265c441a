"""Does the manifest say all that a chat template and a tokenizer do? Tried on texts that bring out what they may do.

Texts are compared as `apply_chat_template` renders them and as the runtime's own `walk` puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING

from edge_prm.encode import Encoder, Layout, trim, walk
from edge_prm.errors import CheckpointError, InputError
from edge_prm.manifest import TRIMS, InputFormat
from edge_prm.split import STEP_SEPARATOR
from edge_prm.trajectory import Step, Trajectory
from edge_prm_export.checkpoint.chat import Chat

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PADDED = (
    *("X", " X", "X ", "  X  ", "\nX", "X\n", "\n\nX\n\n", " \n\tX", "X\t\n ", "\r\nX\r\n"),
    *("\u00a0X\u00a0", "\x0bX\x1c"),
)
_CORES = (
    *("a", "What is 2 + 3?", "a b", "a  b", "a\n\nb", "a\n\n\nb", "a\tb", "a\r\nb", "a\u2028b", "\ufeffa", "e\u0301"),
    *("中文 😀", "ABC abc", "<b>&amp; \"x\" 'y'</b>", "\\n \\boxed{4}", "{{ x }}{% y %}{# z #}", "- a\n- b", "1. a"),
    *("#", "$x_1$", "a: b", "[1] (2) |3|", "a" * 3000, ".", "true", "None", "0", "..."),
)
_MARKERS = (
    *("<think>", "</think>", "<thought>", "</thought>", "<|begin_of_thought|>", "<|end_of_thought|>", "<answer>"),
    *("</answer>", "<tool_call>", "</tool_call>", "<tool_response>", "/think", "/no_think", "[INST]", "[/INST]"),
)
_SHORT = 3  # a string of fewer characters is in nearly every text: the template is refused, and not the text
_MOST_PAIRED = 24
_SEPARATORS = (STEP_SEPARATOR, "\n\n\n", "\r\n\r\n", "\n \n")
_STREAMED = ("b", " b", "  b", "\tb", ".b", "-b", "4", "é", "\u0301b", "中", "😀", "<b", "\u00a0b", "'s b", "\u3000b")


def find_trim(chat: Chat, index: int, contents: list[str]) -> str:
    """Which white space the template takes off message `index` of some: a value of InputFormat's trims.

    CheckpointError when it is none of them.
    """

    def shown(content: str) -> str:
        return chat.render([*contents[:index], content, *contents[index + 1 :]])

    start, _, end = shown(contents[index]).partition(contents[index])
    for how in TRIMS:
        if all(shown(padded) == start + trim(padded, how) + end for padded in _PADDED):
            return how
    padded = next(padded for padded in _PADDED if shown(padded) != start + padded + end)
    raise CheckpointError(
        f"checkpoint {chat.name}: its chat template turns the message {padded!r} into "
        f"{shown(padded)[len(start) :][:40]!r}; only white space taken off its ends can be reproduced"
    )


def check_chat(chat: Chat, form: InputFormat, answer: str = "") -> InputFormat:
    """Return the format with the strings to refuse and the date; CheckpointError when the template gives other text.

    `answer`: what the assistant says of each step of a `tagged` chat.
    """
    for text in [*_CORES, *_PADDED]:
        if said := _difference(chat, form, answer, text):
            raise CheckpointError(f"checkpoint {chat.name}: its chat template {said}")
    refused = _refused(chat, form, answer)
    dated = chat.now.date().isoformat() if chat.dates else ""
    return replace(form, refused=refused, dated=dated)


def _difference(chat: Chat, form: InputFormat, answer: str, text: str) -> str:
    """What the template does with a text as prompt, as first and as a later step that the format does not; "" if
    nothing."""
    follows = form.after[: form.after.find(answer) + len(answer)] if answer else ""  # blanks may be before the answer
    for prompt, *steps in ((text, "b"), ("a", text), ("a", "b", text), ("a", text, "b"), (text, text, text, text)):
        ours = Layout.of(walk(form, Trajectory(prompt, tuple(map(Step, steps))))).text
        for conversation, answer_next in _conversations(form, prompt, steps, answer):
            theirs = chat.render(conversation, answer_next)
            if answer_next and theirs == chat.render(conversation):
                continue  # the template opens no answer by itself; how a given one follows is looked at next
            # the answer to the last step is not read, but it must follow where it is read
            if theirs != ours if answer_next else not theirs.startswith(ours + follows):
                if text != _CORES[0]:
                    return f"rewrites the text {text[:40]!r} of a message"
                return "writes the last message otherwise than earlier ones, or more than messages as they are"
    return ""


def _conversations(form: InputFormat, prompt: str, steps: Sequence[str], answer: str) -> list[tuple[list[str], bool]]:
    """Messages, and whether the assistant's answer is opened after them, that must give the text that we compose."""
    if form.format == "template":
        return [([prompt, "".join(step + form.separator for step in steps)], False)]
    messages = [prompt + form.between + steps[0]]
    for step in steps[1:]:
        messages += [answer, step]
    return [(messages, True), ([*messages, answer], False)]


def _refused(chat: Chat, form: InputFormat, answer: str) -> tuple[str, ...]:
    """Strings that the template looks for in messages: its own literals, and tags of thinking and tools."""
    known = {"user", "assistant"}
    literals = [text.strip() for text in chat.literals if text.strip() and text.strip() not in known]
    markers = list(dict.fromkeys([*_MARKERS, *literals]))
    found = [marker for marker in markers if _rewritten(chat, form, answer, marker)]
    if short := [marker for marker in found if len(marker) < _SHORT]:
        raise CheckpointError(f"checkpoint {chat.name}: its chat template rewrites messages that hold {short[0]!r}")
    rest = [marker for marker in markers if marker not in found][:_MOST_PAIRED]
    for left, right in permutations(rest, 2):
        if right not in found and _difference(chat, form, answer, f"{left}a{right}b"):
            found.append(right)
    return tuple(marker for marker in found if not any(other != marker and other in marker for other in found))


def _rewritten(chat: Chat, form: InputFormat, answer: str, marker: str) -> bool:
    texts = (marker, f"{marker}b", f"a{marker}", f"a {marker} b", f"{marker}\nb", f"a\n{marker}\nb")
    return any(_difference(chat, form, answer, text) for text in texts)


def check_stream(name: str, file: Path, form: InputFormat, vocabulary: int, tokenizer: Tokenizer) -> None:
    """CheckpointError when the tokens of a finished step depend on the text after it: its reward, step by step, would
    not be the one of the text at once."""
    encoder = Encoder.of_format(file, form, 1 << 30, vocabulary)
    added = tokenizer.get_added_tokens_decoder().values()
    eating = [token.content for token in added if (token.lstrip or token.rstrip) and token.content.strip()]
    following = [*_STREAMED, *(text for token in eating for text in (token + "b", f" {token} b"))]
    ends = ["a", "a ", "a.", "4", "é", "中", *(f"a{token}" for token in eating)]
    separators = _SEPARATORS if form.format == "raw" else (STEP_SEPARATOR,)
    pairs = [(end, "b") for end in ends] + [("a", text) for text in following]
    for (end, text), separator in product(pairs, separators):
        steps = (Step(end, separator), Step(end, separator), Step(text))
        try:
            full = encoder.encode(Trajectory("P", steps))
            closed = [encoder.encode(Trajectory("P", steps[:count])) for count in (1, 2)]
        except InputError as error:  # such a text is refused when it comes, but not every text
            if (end, text) == pairs[0]:
                raise CheckpointError(f"checkpoint {name}: its tokenizer does not fit its format: {error}") from None
            continue
        if form.format == "template" and {*full.ids[list(full.read_at)].tolist()} != {form.separator_id}:
            raise CheckpointError(
                f"checkpoint {name}: its tokenizer does not read {form.separator!r} in a text as that token; save the "
                "tokenizer again with transformers, the token not normalized"
            )
        for part, at in zip(closed, full.read_at, strict=False):
            if part.read_at[-1] != at or part.ids[: at + 1].tolist() != full.ids[: at + 1].tolist():
                raise CheckpointError(
                    f"checkpoint {name}: by its tokenizer, the tokens of the step {end!r} change when {text!r} follows "
                    "(a token or a normalizer takes white space away, or joins it); rewards step by step and at once "
                    "would differ"
                )
