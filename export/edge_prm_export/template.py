"""From a checkpoint's conventions to the manifest's InputFormat: the chat template is rendered once, here."""

from __future__ import annotations

import json
from typing import Any

from edge_prm.errors import CheckpointError, MissingExtraError
from edge_prm.manifest import InputFormat
from edge_prm.trajectory import STEP_SEPARATOR
from edge_prm_export.checkpoint import Checkpoint

STEP_TOKEN = "<extra_0>"
TRL_SEPARATOR = "\n"
_USER = "edge-prm-user-3f1c"
_ASSISTANT = "edge-prm-assistant-3f1c"


def input_format(checkpoint: Checkpoint, head_kind: str, separator: str | None = None) -> InputFormat:
    """Return how prompt and steps become tokens for this kind of head.

    `separator`: the text between steps (`token_class`, TRL's default is a newline) or the token behind each step
    (`two_class`, `<extra_0>`); a sigmoid head has none to choose.
    """
    if head_kind == "sigmoid":
        if separator not in (None, STEP_SEPARATOR):
            raise CheckpointError(f"separator {separator!r}: a sigmoid head reads steps at blank lines")
        return InputFormat("raw", STEP_SEPARATOR)
    if head_kind == "token_class":
        bos = _tokenizer_config(checkpoint).get("bos_token")
        bos_id = None if bos is None else token_id(checkpoint, _content(bos))
        return InputFormat("pieces", separator or TRL_SEPARATOR, bos_id=bos_id)
    step_token = separator or STEP_TOKEN
    before, between = _render(checkpoint)
    return InputFormat("template", step_token, token_id(checkpoint, step_token), before, between)


def token_id(checkpoint: Checkpoint, token: str) -> int:
    """Return the id of a special token; CheckpointError when the tokenizer does not know it."""
    from tokenizers import Tokenizer

    path = checkpoint.folder / "tokenizer.json"
    found = Tokenizer.from_file(str(path)).token_to_id(token)
    if found is None:
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
    try:
        text = environment.from_string(_chat_template(checkpoint, config)).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=False, **tokens
        )
    except TemplateError as error:
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
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named templates: transformers takes the one named default
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has no chat template, and a two-class head is read through it"
        )
    return template


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.folder / "tokenizer_config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from None
    return data if isinstance(data, dict) else {}


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
