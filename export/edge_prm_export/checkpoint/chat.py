"""A checkpoint's chat template, searched and rendered as transformers does (utils/chat_template_utils.py, 4.57)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_prm.checkpoint_files import read_json
from edge_prm.errors import CheckpointError, MissingExtraError
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.tokenizer import read_settings

ROLES = ("user", "assistant")
TEMPLATE_NAME = "chat_template.jinja"
PROCESSOR_TEMPLATE_NAME = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"


@dataclass
class Chat:
    """A compiled chat template. `literals`: the strings in its source that a text may be compared with; `dates`: the
    formats that it gave to strftime_now, filled while it renders."""

    name: str
    template: Any
    tokens: dict[str, str]
    literals: tuple[str, ...]
    now: datetime
    dates: list[str] = field(default_factory=list)

    def render(self, contents: list[str], answer_next: bool = False) -> str:
        """Render messages of user and assistant in turn; CheckpointError when the template raises anything.

        `answer_next`: with what opens the assistant's answer (add_generation_prompt).
        """
        messages = [{"role": ROLES[index % 2], "content": content} for index, content in enumerate(contents)]
        try:
            return str(
                self.template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=answer_next, **self.tokens
                )
            )
        except Exception as error:  # TemplateError, and anything that an expression in a template can raise
            raise CheckpointError(
                f"checkpoint {self.name}: its chat template cannot be rendered ({error}); "
                "a user's and an assistant's message in turn were tried"
            ) from None


def open_chat(checkpoint: Checkpoint) -> Chat:
    """Compile a checkpoint's chat template; CheckpointError when there is none or it cannot be read."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtraError("export", ["jinja2"]) from None
    source = _find_template(checkpoint)
    now = datetime.now()
    dates: list[str] = []

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(wanted: str) -> str:
        dates.append(wanted)
        return now.strftime(wanted)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=refuse, strftime_now=strftime_now)
    try:
        template = environment.from_string(source)
        constants = environment.parse(source).find_all(jinja2.nodes.Const)
    except (jinja2.TemplateError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.name}: its chat template cannot be rendered ({error})") from None
    literals = tuple(dict.fromkeys(const.value for const in constants if isinstance(const.value, str)))
    return Chat(checkpoint.name, template, read_settings(checkpoint).tokens, literals, now, dates)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML; transformers puts plain JSON in its place."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> Any:
    """`{% generation %} ... {% endgeneration %}` marks what the assistant says, for training; it renders what is in it.

    Like a `{% call %}` block, it has a scope of its own: what is set in it is not seen after it.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):  # type: ignore[misc,unused-ignore]  # untyped where jinja2 has no types
        tags = {"generation"}  # noqa: RUF012  # jinja2 declares it as a plain attribute

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

        def _render(self, caller: Any) -> Any:
            return caller()

    return Generation


def _find_template(checkpoint: Checkpoint) -> str:
    """The default template, in transformers' order: its own files, the tokenizer's config, an old processor's file."""
    template = _template_files(checkpoint.folder) or read_settings(checkpoint).config.get("chat_template")
    processor = checkpoint.folder / PROCESSOR_TEMPLATE_NAME
    if template is None and processor.is_file():
        template = read_json(processor, checkpoint.name).get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        template = _default_of(template, checkpoint.name)
    if not isinstance(template, str):
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has no chat template, and its steps are read through one: put it into "
            f"{TEMPLATE_NAME}, or give the separator of a pair of tokens with --separator"
        )
    return template


def _template_files(folder: Path) -> dict[str, Any]:
    """Name -> template, of the files that hold nothing else."""
    named: dict[str, Any] = {}
    if (folder / TEMPLATE_NAME).is_file():
        named["default"] = _text(folder / TEMPLATE_NAME)
    more = folder / MORE_TEMPLATES
    for path in sorted(more.glob("*.jinja")) if more.is_dir() else ():
        named[path.stem] = _text(path)
    return named


def _default_of(templates: dict[Any, Any], name: str) -> Any:
    template = templates.get("default")
    if template is None:
        raise CheckpointError(
            f"checkpoint {name} has no chat template named default (it has "
            f"{', '.join(map(repr, templates)) or 'none'}); put the right one into {TEMPLATE_NAME}"
        )
    return template


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # as transformers opens it: line ends become \n
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CheckpointError(f"{path} cannot be read ({reason}); download it again") from None
