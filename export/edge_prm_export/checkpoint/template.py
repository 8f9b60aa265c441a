"""From a checkpoint's conventions to the manifest's InputFormat: the chat template is rendered here, and never again.

What the manifest says is then compared with what the template gives for many texts: a template that does more with a
message than to take white space off its ends is refused, or the strings that it looks for are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edge_prm.encode import TOKENIZER_NAME, trim
from edge_prm.errors import CheckpointError, InputError
from edge_prm.manifest import InputFormat
from edge_prm.split import STEP_SEPARATOR
from edge_prm_export.checkpoint.chat import Chat, open_chat
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.head import VALUE_HEAD
from edge_prm_export.checkpoint.probe import check_chat, check_stream, find_trim
from edge_prm_export.checkpoint.tokenizer import bos_id, check_settings, leading_id, open_tokenizer, token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STEP_TOKEN = "<extra_0>"
TRL_SEPARATOR = "\n"
VALUE_SEPARATOR = "\n"
_USER = "edge-prm-user-3f1c"
_ASSISTANT = "edge-prm-assistant-3f1c"
_USER_AGAIN = "edge-prm-again-3f1c"


def input_format(
    checkpoint: Checkpoint,
    head_kind: str,
    separator: str | None = None,
    between: str | None = None,
    after: str | None = None,
    answer: str = "+",
) -> InputFormat:
    """Return how prompt and steps become tokens for this kind of head.

    `separator`: the text between steps (`token_class`, TRL's default is a newline), the token after each step
    (`two_class`, `<extra_0>`) or the tag that closes it (`token_pair`, Math-Shepherd's ` ки`; without one, each step is
    a user's turn of the chat template, and judged where the assistant's begins: RLHFlow's way). A sigmoid head has
    none to choose. For a `token_pair`, `between` is the text between prompt and steps, `after` the text after each tag
    but the last; in a chat, `answer` is what the assistant says of a good step, a piece of the vocabulary. Raises
    InputError for options that do not fit the head, CheckpointError for the rest, also for a tokenizer
    that is missing, damaged or not the model's, and for conventions that a bundle cannot reproduce token by token.
    """
    if head_kind != "token_pair" and (between is not None or after is not None):
        raise InputError(
            f"between and after_step describe a token_pair head, and this checkpoint has a {head_kind} head"
        )
    if separator == "":
        raise InputError("separator is empty; give the text or the token that closes a step, or leave the option out")
    tokenizer = open_tokenizer(checkpoint)
    check_settings(checkpoint, tokenizer)
    if head_kind == "sigmoid" and VALUE_HEAD in checkpoint.tensor_names:
        form = _valued(checkpoint, tokenizer, separator)
    elif head_kind == "sigmoid":
        if separator not in (None, STEP_SEPARATOR):
            raise CheckpointError(f"separator {separator!r}: a sigmoid head reads steps at blank lines")
        form = InputFormat("raw", STEP_SEPARATOR, bos_id=leading_id(checkpoint, tokenizer))
    elif head_kind == "token_pair":
        form = _tagged(checkpoint, tokenizer, separator, between, after, answer)
    elif head_kind == "token_class":
        form = InputFormat("pieces", separator or TRL_SEPARATOR, bos_id=bos_id(checkpoint, tokenizer))
    else:
        form = _templated(checkpoint, tokenizer, separator or STEP_TOKEN)
    check_stream(checkpoint.name, checkpoint.folder / TOKENIZER_NAME, form, checkpoint.config.vocabulary, tokenizer)
    return form


def _templated(checkpoint: Checkpoint, tokenizer: Tokenizer, separator: str) -> InputFormat:
    """Qwen2.5-Math-PRM's way: the prompt is the user's message, steps with their separators are the assistant's."""
    separator_id = token_id(checkpoint, tokenizer, separator)
    chat = open_chat(checkpoint)
    before, between, _ = _pieces(chat, _USER, _ASSISTANT)
    form = InputFormat("template", separator, separator_id, before, between)
    form = replace(
        form,
        trim_user=find_trim(chat, 0, [_USER, _ASSISTANT]),
        trim_assistant=find_trim(chat, 1, [_USER, _ASSISTANT]),
    )
    return check_chat(chat, form)


def _valued(checkpoint: Checkpoint, tokenizer: Tokenizer, separator: str | None) -> InputFormat:
    """Skywork-o1-Open-PRM's way (prepare_input of skywork-o1-prm-inference): bos_token + problem + newline, then each
    step and a newline, every piece tokenized by itself; the last token of the newline is read."""
    if leading_id(checkpoint, tokenizer) is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer puts a token before every text, and with a {VALUE_HEAD} each "
            "step is a text; whether the model was trained so is not known"
        )
    chosen = separator or VALUE_SEPARATOR
    if len(tokenizer.encode(chosen, add_special_tokens=False).ids) != 1:
        raise CheckpointError(
            f"separator {chosen!r} is not one token of {checkpoint.name}, and a {VALUE_HEAD} reads a step at one; "
            "name another with --separator"
        )
    first = bos_id(checkpoint, tokenizer)
    return InputFormat("pieces", chosen, between="\n", bos_id=first)


def _tagged(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    separator: str | None,
    between: str | None,
    after: str | None,
    answer: str,
) -> InputFormat:
    between = " " if between is None else between
    if separator is not None:
        after = "\n" if after is None else after
        _check_tag(tokenizer, separator, after)
        first = leading_id(checkpoint, tokenizer)
        return InputFormat("tagged", separator, between=between, after=after, bos_id=first)
    if after is not None:
        raise InputError("after_step goes with separator; without one, the chat template says what is between steps")
    return _judged_turns(open_chat(checkpoint), tokenizer, between, answer)


def _judged_turns(chat: Chat, tokenizer: Tokenizer, between: str, good_token: str) -> InputFormat:
    """RLHFlow's way: each step is a message of the user, and the token before the assistant's answer is read. The
    answer to an earlier step is in the text of the next one, as in training."""
    messages = [_USER, _ASSISTANT, _USER_AGAIN]
    before, opening, rest = _pieces(chat, *messages)
    good_id = tokenizer.token_to_id(good_token)
    # a piece of the vocabulary: `Ġ+` is said as ` +`
    answer = good_token if good_id is None else tokenizer.decode([good_id], skip_special_tokens=False)
    answer = trim(answer, find_trim(chat, 1, messages))
    opening, lead = _parted(tokenizer, opening, answer)
    opened, answered = (_ids(tokenizer, opening + text) for text in ("", lead + answer))
    if good_id is not None and answered[len(opened) : len(opened) + 1] != [good_id]:
        found = [tokenizer.id_to_token(id_) for id_ in answered[len(opened) :]]
        raise CheckpointError(
            f"checkpoint {chat.name}: in its chat template, the answer {answer!r} is the token {found[:1]} and not "
            f"{good_token!r}; name the right ones with --good-token and --bad-token"
        )
    form = InputFormat("tagged", opening, before=before, between=between, after=lead + answer + rest)
    form = replace(form, trim_user=find_trim(chat, 2, messages))
    return check_chat(chat, form, answer)


def _parted(tokenizer: Tokenizer, opening: str, answer: str) -> tuple[str, str]:
    """Blanks before an answer that are in one token with it belong to it: what opens the answer, and those blanks."""
    opened = _ids(tokenizer, opening)
    if _ids(tokenizer, opening + answer)[: len(opened)] == opened:
        return opening, ""
    return opening.rstrip(" "), opening[len(opening.rstrip(" ")) :]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _check_tag(tokenizer: Tokenizer, separator: str, after: str) -> None:
    """InputError when a token would hold the tag's end and what follows: a closed step's reward must not change."""
    closed, going_on = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in (f"4{separator}", f"4{separator}{after}Then 5")
    )
    if going_on[: len(closed)] != closed:
        raise InputError(
            f"separator {separator!r} and after_step {after!r} share a token; choose an after_step that begins with "
            "another kind of character"
        )


def _pieces(chat: Chat, *contents: str) -> list[str]:
    """Render messages of user and assistant in turn; return what is before each of their contents, and "" where
    there is no third."""
    text = chat.render(list(contents))
    pieces = []
    for content in contents:
        piece, found, text = text.partition(content)
        if not found or content in text:
            raise CheckpointError(
                f"checkpoint {chat.name}: its chat template does not show user and assistant once, in this order"
            )
        pieces.append(piece)
    return [*pieces, ""][:3]
