"""From a checkpoint's conventions to the manifest's InputFormat: the chat template is rendered once, here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_prm.errors import CheckpointError, InputError, MissingExtraError
from edge_prm.manifest import InputFormat
from edge_prm.split import STEP_SEPARATOR
from edge_prm_export.checkpoint import Checkpoint, read_json
from edge_prm_export.vocabulary import leading_id, open_tokenizer, token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STEP_TOKEN = "<extra_0>"
TRL_SEPARATOR = "\n"
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

    `separator`: the text between steps (`token_class`, TRL's default is a newline), the token behind each step
    (`two_class`, `<extra_0>`) or the tag that closes it (`token_pair`, Math-Shepherd's ` ки`; without one, each step is
    a user's turn of the chat template, and judged where the assistant's begins: RLHFlow's way). A sigmoid head has
    none to choose. For a `token_pair`, `between` stands between prompt and steps and `after` behind each tag but the
    last; in a chat, `answer` is what the assistant says of a good step. Raises CheckpointError, also for a tokenizer
    that is missing, damaged or not the model's.
    """
    if head_kind != "token_pair" and (between is not None or after is not None):
        raise InputError(
            f"between and after_step describe a token_pair head, and this checkpoint has a {head_kind} head"
        )
    if separator == "":
        raise InputError("separator is empty; give the text or the token that closes a step, or leave the option out")
    tokenizer = open_tokenizer(checkpoint)
    if head_kind == "sigmoid":
        if separator not in (None, STEP_SEPARATOR):
            raise CheckpointError(f"separator {separator!r}: a sigmoid head reads steps at blank lines")
        return InputFormat("raw", STEP_SEPARATOR, bos_id=leading_id(checkpoint, tokenizer))
    if head_kind == "token_pair":
        return _tagged(checkpoint, tokenizer, separator, between, after, answer)
    if head_kind == "token_class":
        bos = _tokenizer_config(checkpoint).get("bos_token")
        bos_id = None if bos is None else token_id(checkpoint, tokenizer, _content(bos))
        return InputFormat("pieces", separator or TRL_SEPARATOR, bos_id=bos_id)
    step_token = separator or STEP_TOKEN
    before, between, _ = _render(checkpoint, _USER, _ASSISTANT)
    return InputFormat("template", step_token, token_id(checkpoint, tokenizer, step_token), before, between)


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
        bos_id = leading_id(checkpoint, tokenizer)
        return InputFormat("tagged", separator, between=between, after=after, bos_id=bos_id)
    if after is not None:
        raise InputError(
            "after_step goes with separator; without one, the chat template says what stands between steps"
        )
    # the answer to an earlier step stands in the text of the next one, as in training
    before, opening, rest = _render(checkpoint, _USER, _ASSISTANT, _USER_AGAIN)
    return InputFormat("tagged", opening, before=before, between=between, after=answer + rest)


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


def _render(checkpoint: Checkpoint, *contents: str) -> list[str]:
    """Render messages of user and assistant in turn; return what stands before each of their contents, and "" where
    there is no third."""
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtraError("export", ["jinja2"]) from None
    config = _tokenizer_config(checkpoint)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    tokens = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    template = _chat_template(checkpoint, config)
    try:
        text = environment.from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=False, **tokens
        )
    except Exception as error:  # besides TemplateError, anything that an expression in a template can raise
        raise CheckpointError(f"checkpoint {checkpoint.name}: its chat template cannot be rendered ({error})") from None
    pieces = []
    for content in contents:
        piece, found, text = text.partition(content)
        if not found or content in text:
            raise CheckpointError(
                f"checkpoint {checkpoint.name}: its chat template does not show user and assistant once, in this order"
            )
        pieces.append(piece)
    return [*pieces, ""][:3]


def _chat_template(checkpoint: Checkpoint, config: dict[str, Any]) -> str:
    path = checkpoint.folder / "chat_template.jinja"
    template = _text(path) if path.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named templates: transformers takes the one named default
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has no chat template, and a two-class head is read through it"
        )
    return template


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.folder / "tokenizer_config.json"
    return read_json(path, checkpoint.name) if path.exists() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CheckpointError(f"{path} cannot be read ({reason}); download it again") from None


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
