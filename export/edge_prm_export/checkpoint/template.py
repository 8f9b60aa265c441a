"""From a checkpoint's conventions to the manifest's InputFormat: the chat template is rendered here, and never again.

What the manifest says is then compared with what the template gives for many texts: a template that does more with a
message than to take white space off its ends is refused, or the strings that it looks for are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from edge_prm.encode import TOKENIZER_NAME, trim
from edge_prm.errors import CheckpointError, InputError
from edge_prm.head import Head
from edge_prm.input_format import ChatRules, InputFormat
from edge_prm.split import STEP_SEPARATOR
from edge_prm_export.checkpoint.chat import Chat, open_chat
from edge_prm_export.checkpoint.conventions import Chosen, Given, choose, separator_id
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.head import VALUE_HEAD, read_head
from edge_prm_export.checkpoint.probe import check_chat, check_stream, find_trim
from edge_prm_export.checkpoint.tokenizer import bos_id, check_settings, leading_id, open_tokenizer, token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_USER = "edge-prm-user-3f1c"
_ASSISTANT = "edge-prm-assistant-3f1c"
_USER_AGAIN = "edge-prm-again-3f1c"


class HeadAndFormat(NamedTuple):
    """What makes a judge of a decoder; `convention` is the name of the convention that was chosen, or "custom"."""

    head: Head
    format: InputFormat
    convention: str


def head_and_format(checkpoint: Checkpoint, given: Given) -> HeadAndFormat:
    """Return the reward head of a checkpoint, and how prompt and steps become its tokens.

    Raises the errors of `choose`, `read_head` and `read_format`.
    """
    chosen = choose(checkpoint, given)
    head = read_head(checkpoint, chosen.tokens or None, chosen.convention.aggregate)
    return HeadAndFormat(head, read_format(checkpoint, chosen), chosen.convention.name)


def read_format(checkpoint: Checkpoint, chosen: Chosen) -> InputFormat:
    """Return how prompt and steps become token ids by this convention.

    Raises CheckpointError for a tokenizer that is missing, damaged or not the model's, for a convention that does not
    fit it, and for one that a bundle cannot reproduce token by token. Raises InputError for a separator that shares a
    token with the text after it.
    """
    tokenizer = open_tokenizer(checkpoint)
    check_settings(checkpoint, tokenizer)
    input_format = WRITINGS[chosen.convention.writing](checkpoint, tokenizer, chosen)
    check_stream(
        checkpoint.name, checkpoint.folder / TOKENIZER_NAME, input_format, checkpoint.config.vocabulary, tokenizer
    )
    return input_format


def _raw(checkpoint: Checkpoint, tokenizer: Tokenizer, chosen: Chosen) -> InputFormat:
    """One string, in which blank lines of the user close steps."""
    separator = chosen.convention.pieces.separator
    if separator != STEP_SEPARATOR:
        raise CheckpointError(f"separator {separator!r}: a sigmoid head reads steps at blank lines")
    return InputFormat("raw", STEP_SEPARATOR, bos_id=leading_id(checkpoint, tokenizer))


def _chat(checkpoint: Checkpoint, tokenizer: Tokenizer, chosen: Chosen) -> InputFormat:
    """The prompt is the user's message; all steps with their separator tokens are the assistant's."""
    separator = chosen.convention.pieces.separator
    id_ = token_id(checkpoint, tokenizer, separator)
    chat = open_chat(checkpoint)
    before, between, _ = _parts(chat, _USER, _ASSISTANT)
    rules = ChatRules(find_trim(chat, 0, [_USER, _ASSISTANT]), find_trim(chat, 1, [_USER, _ASSISTANT]))
    return check_chat(chat, InputFormat("template", separator, id_, before, between, chat=rules))


def _pieces(checkpoint: Checkpoint, tokenizer: Tokenizer, chosen: Chosen) -> InputFormat:
    """bos_token, prompt, steps and separators, each tokenized by itself without special tokens."""
    pieces = chosen.convention.pieces
    return InputFormat("pieces", pieces.separator, between=pieces.between, bos_id=bos_id(checkpoint, tokenizer))


def _texts(checkpoint: Checkpoint, tokenizer: Tokenizer, chosen: Chosen) -> InputFormat:
    """As `pieces`, but the authors tokenize each piece as a text, with the special tokens that begin a text."""
    if leading_id(checkpoint, tokenizer) is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer puts a token before every text, and with a {VALUE_HEAD} each "
            "step is a text; whether the model was trained so is not known"
        )
    separator = chosen.convention.pieces.separator
    if len(_ids(tokenizer, separator)) != 1:
        raise CheckpointError(
            f"separator {separator!r} is not one token of {checkpoint.name}, and a {VALUE_HEAD} reads a step at one; "
            "name another with --separator"
        )
    return _pieces(checkpoint, tokenizer, chosen)


def _tags(checkpoint: Checkpoint, tokenizer: Tokenizer, chosen: Chosen) -> InputFormat:
    """One text, in which a tag closes each step and is read."""
    pieces = chosen.convention.pieces
    id_ = separator_id(checkpoint, tokenizer, chosen.convention) if pieces.one_token else None
    _check_tag(tokenizer, pieces.separator, pieces.after)
    return InputFormat(
        "tagged",
        pieces.separator,
        id_,
        between=pieces.between,
        after=pieces.after,
        bos_id=leading_id(checkpoint, tokenizer),
    )


def _turns(checkpoint: Checkpoint, tokenizer: Tokenizer, chosen: Chosen) -> InputFormat:
    """Each step is a message of the user; the token before the assistant's answer is read."""
    return _judged_turns(open_chat(checkpoint), tokenizer, chosen.convention.pieces.between, chosen.tokens[0])


WRITINGS: dict[str, Callable[[Checkpoint, Tokenizer, Chosen], InputFormat]] = {
    "raw": _raw,
    "chat": _chat,
    "pieces": _pieces,
    "texts": _texts,
    "tags": _tags,
    "turns": _turns,
}
"""The ways of writing prompt and steps that conventions choose from."""


def _judged_turns(chat: Chat, tokenizer: Tokenizer, between: str, good_token: str) -> InputFormat:
    """RLHFlow's way: each step is a message of the user, and the token before the assistant's answer is read. The
    answer to an earlier step is in the text of the next one, as in training."""
    messages = [_USER, _ASSISTANT, _USER_AGAIN]
    before, opening, rest = _parts(chat, *messages)
    good_id = tokenizer.token_to_id(good_token)
    # a piece of the vocabulary: `Ġ+` is said as ` +`
    answer = good_token if good_id is None else tokenizer.decode([good_id], skip_special_tokens=False)
    answer = trim(answer, find_trim(chat, 1, messages))
    opening, lead = _parted(tokenizer, opening, answer)
    opened, answered = (_ids(tokenizer, opening + text) for text in ("", lead + answer))
    if good_id is not None and answered[len(opened) : len(opened) + 1] != [good_id]:
        tokens = [tokenizer.id_to_token(id_) for id_ in answered[len(opened) :]]
        raise CheckpointError(
            f"checkpoint {chat.name}: in its chat template, the answer {answer!r} is the token {tokens[:1]} and not "
            f"{good_token!r}; name the right ones with --good-token and --bad-token"
        )
    rules = ChatRules(trim_user=find_trim(chat, 2, messages))
    after = lead + answer + rest
    input_format = InputFormat("tagged", opening, before=before, between=between, after=after, chat=rules)
    return check_chat(chat, input_format, answer)


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


def _parts(chat: Chat, *contents: str) -> list[str]:
    """Render messages of user and assistant in turn; return what is before each of their contents, and "" where
    there is no third."""
    text = chat.render(list(contents))
    pieces = []
    for content in contents:
        piece, shown, text = text.partition(content)
        if not shown or content in text:
            raise CheckpointError(
                f"checkpoint {chat.name}: its chat template does not show user and assistant once, in this order"
            )
        pieces.append(piece)
    return [*pieces, ""][:3]
