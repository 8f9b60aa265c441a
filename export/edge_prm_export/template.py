"""From a checkpoint's conventions to the manifest's InputFormat: the chat template is rendered once, here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import CheckpointError, CheckpointNotFoundError, InputError, MissingExtraError
from edge_prm.manifest import InputFormat
from edge_prm.trajectory import STEP_SEPARATOR
from edge_prm_export.checkpoint import Checkpoint, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STEP_TOKEN = "<extra_0>"
TRL_SEPARATOR = "\n"
_USER = "edge-prm-user-3f1c"
_ASSISTANT = "edge-prm-assistant-3f1c"


def input_format(checkpoint: Checkpoint, head_kind: str, separator: str | None = None) -> InputFormat:
    """Return how prompt and steps become tokens for this kind of head.

    `separator`: the text between steps (`token_class`, TRL's default is a newline) or the token behind each step
    (`two_class`, `<extra_0>`); a sigmoid head has none to choose. Raises CheckpointError, also for a tokenizer that
    is missing, damaged or not the model's.
    """
    if separator == "":
        raise InputError("separator is empty; give the text or the token that closes a step, or leave the option out")
    tokenizer = _tokenizer(checkpoint)
    if head_kind == "sigmoid":
        if separator not in (None, STEP_SEPARATOR):
            raise CheckpointError(f"separator {separator!r}: a sigmoid head reads steps at blank lines")
        return InputFormat("raw", STEP_SEPARATOR)
    if head_kind == "token_class":
        bos = _tokenizer_config(checkpoint).get("bos_token")
        bos_id = None if bos is None else _token_id(checkpoint, tokenizer, _content(bos))
        return InputFormat("pieces", separator or TRL_SEPARATOR, bos_id=bos_id)
    step_token = separator or STEP_TOKEN
    before, between = _render(checkpoint)
    return InputFormat("template", step_token, _token_id(checkpoint, tokenizer, step_token), before, between)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Open the checkpoint's tokenizer; CheckpointError when it cannot be read or has more tokens than the model."""
    from tokenizers import Tokenizer

    path = checkpoint.folder / TOKENIZER_NAME
    if not path.is_file():
        raise CheckpointNotFoundError(checkpoint.name, f"{TOKENIZER_NAME} is missing")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again") from None
    size, rows = tokenizer.get_vocab_size(with_added_tokens=True), checkpoint.config.vocabulary
    if size > rows:
        raise CheckpointError(f"{path} has {size} tokens and config.json a vocab_size of {rows}; they do not match")
    return tokenizer


def _token_id(checkpoint: Checkpoint, tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token; CheckpointError when the tokenizer does not know it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        path = checkpoint.folder / TOKENIZER_NAME
        raise CheckpointError(f"{path} has no token {token!r}; name the right one with --separator")
    return int(found)


def _render(checkpoint: Checkpoint) -> tuple[str, str]:
    """Render one user and one assistant message and return what stands before and between their contents."""
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
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    tokens = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    template = _chat_template(checkpoint, config)
    try:
        text = environment.from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=False, **tokens
        )
    except Exception as error:  # besides TemplateError, anything that an expression in a template can raise
        raise CheckpointError(f"checkpoint {checkpoint.name}: its chat template cannot be rendered ({error})") from None
    before, user, rest = text.partition(_USER)
    between, assistant, _ = rest.partition(_ASSISTANT)
    if not user or not assistant or _USER in rest:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its chat template does not show user and assistant once, in this order"
        )
    return before, between


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
