"""Check that the manifest describes all that a chat template and a tokenizer do, on texts that show what they may do.

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
from edge_prm.input_format import InputFormat
from edge_prm.manifest import TRIMS
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


def check_chat(chat: Chat, input_format: InputFormat, answer: str = "") -> InputFormat:
    """Return the format with the strings to refuse and the date; CheckpointError when the template gives other text.

    `answer`: what the assistant says of each step of a `tagged` chat.
    """
    for text in [*_CORES, *_PADDED]:
        if said := _difference(chat, input_format, answer, text):
            raise CheckpointError(f"checkpoint {chat.name}: its chat template {said}")
    refused = _refused(chat, input_format, answer)
    dated = chat.now.date().isoformat() if chat.dates else ""
    return replace(input_format, chat=replace(input_format.chat, refused=refused, dated=dated))


def _difference(chat: Chat, input_format: InputFormat, answer: str, text: str) -> str:
    """What the template does with a text as prompt, as first and as a later step that the format does not; "" if
    nothing."""
    follows = (
        input_format.after[: input_format.after.find(answer) + len(answer)] if answer else ""
    )  # blanks may be before the answer
    for prompt, *steps in ((text, "b"), ("a", text), ("a", "b", text), ("a", text, "b"), (text, text, text, text)):
        ours = Layout.of(walk(input_format, Trajectory(prompt, tuple(map(Step, steps))))).text
        for conversation, answer_next in _conversations(input_format, prompt, steps, answer):
            theirs = chat.render(conversation, answer_next)
            if answer_next and theirs == chat.render(conversation):
                continue  # the template opens no answer by itself; how a given one follows is looked at next
            # the answer to the last step is not read, but it must follow where it is read
            if theirs != ours if answer_next else not theirs.startswith(ours + follows):
                if text != _CORES[0]:
                    return f"rewrites the text {text[:40]!r} of a message"
                return "writes the last message otherwise than earlier ones, or more than messages as they are"
    return ""


def _conversations(
    input_format: InputFormat, prompt: str, steps: Sequence[str], answer: str
) -> list[tuple[list[str], bool]]:
    """Messages, and whether the assistant's answer is opened after them, that must give the text that we compose."""
    if input_format.format == "template":
        return [([prompt, "".join(step + input_format.separator for step in steps)], False)]
    messages = [prompt + input_format.between + steps[0]]
    for step in steps[1:]:
        messages += [answer, step]
    return [(messages, True), ([*messages, answer], False)]


def _refused(chat: Chat, input_format: InputFormat, answer: str) -> tuple[str, ...]:
    """Strings that the template looks for in messages: its own literals, and tags of thinking and tools."""
    known = {"user", "assistant"}
    literals = [text.strip() for text in chat.literals if text.strip() and text.strip() not in known]
    markers = list(dict.fromkeys([*_MARKERS, *literals]))
    refused = [marker for marker in markers if _rewritten(chat, input_format, answer, marker)]
    if short := [marker for marker in refused if len(marker) < _SHORT]:
        raise CheckpointError(f"checkpoint {chat.name}: its chat template rewrites messages that hold {short[0]!r}")
    harmless = [marker for marker in markers if marker not in refused][:_MOST_PAIRED]
    for first, second in permutations(harmless, 2):
        if second not in refused and _difference(chat, input_format, answer, f"{first}a{second}b"):
            refused.append(second)
    return tuple(marker for marker in refused if not any(other != marker and other in marker for other in refused))


def _rewritten(chat: Chat, input_format: InputFormat, answer: str, marker: str) -> bool:
    texts = (marker, f"{marker}b", f"a{marker}", f"a {marker} b", f"{marker}\nb", f"a\n{marker}\nb")
    return any(_difference(chat, input_format, answer, text) for text in texts)


def check_stream(name: str, file: Path, input_format: InputFormat, vocabulary: int, tokenizer: Tokenizer) -> None:
    """CheckpointError when the tokens of a closed step depend on the text after it: the reward of an incremental run
    would then differ from that of the full text."""
    encoder = Encoder.of_format(file, input_format, 1 << 30, vocabulary)
    pairs = _step_pairs(tokenizer)
    separators = _SEPARATORS if input_format.format == "raw" else (STEP_SEPARATOR,)
    for (end, text), separator in product(pairs, separators):
        steps = (Step(end, separator), Step(end, separator), Step(text))
        try:
            full = encoder.encode(Trajectory("P", steps))
            closed = [encoder.encode(Trajectory("P", steps[:count])) for count in (1, 2)]
        except InputError as error:  # such a text is refused when it is scored, but not every text may be
            if (end, text) == pairs[0]:
                raise CheckpointError(f"checkpoint {name}: its tokenizer does not fit its format: {error}") from None
            continue
        for part, at in zip(closed, full.read_at, strict=False):
            if part.read_at[-1] != at or part.ids[: at + 1].tolist() != full.ids[: at + 1].tolist():
                raise CheckpointError(
                    f"checkpoint {name}: by its tokenizer, the tokens of the step {end!r} change when {text!r} follows "
                    "(a token or a normalizer takes white space away, or joins it); rewards step by step and at once "
                    "would differ"
                )


def _step_pairs(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(closed step, next step) of which tokenizers are known to join or strip the characters at the seam."""
    added = tokenizer.get_added_tokens_decoder().values()
    stripping = [token.content for token in added if (token.lstrip or token.rstrip) and token.content.strip()]
    following = [*_STREAMED, *(text for token in stripping for text in (token + "b", f" {token} b"))]
    ends = ["a", "a ", "a.", "4", "é", "中", *(f"a{token}" for token in stripping)]
    return [(end, "b") for end in ends] + [("a", text) for text in following]
