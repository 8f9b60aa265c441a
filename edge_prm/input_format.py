"""How prompt and steps become token ids, as data that a manifest holds. `edge_prm.encode` follows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ChatRules:
    """What a checkpoint's chat template does with messages, where it does more than to join them.

    `trim_user` and `trim_assistant` (left, right, both or ""; left-newlines and so on for newlines only): white space
    that it takes off a message. `refused`: strings that it would rewrite; a text that holds one is an InputError.
    `dated`: the date of the export, when it writes the date.
    """

    trim_user: str = ""
    trim_assistant: str = ""
    refused: tuple[str, ...] = ()
    dated: str = ""


@dataclass(frozen=True)
class InputFormat:
    """How prompt and steps become token ids; a checkpoint's conventions are data, never code.

    `raw`: one string, prompt and completion with nothing between them; a step is read at the token that closes it.
    `template`: before + prompt + between + (step + separator token)...; a step is read at its separator token.
    `pieces`: before + prompt + between, steps and separators, each tokenized by itself; a step is read at its
    separator's last token.
    `tagged`: before + prompt + between + (step + separator) with `after` between them, one run of text but for special
    tokens in these pieces; a step is read at the token that ends its separator.

    `chat`: what the chat template does with messages. Those of a `template` are the prompt (user) and all steps
    (assistant); of a `tagged` chat, each step is one of the user, and the first begins with the prompt.
    """

    format: str
    separator: str
    separator_id: int | None = None
    before: str = ""
    between: str = ""
    after: str = ""
    bos_id: int | None = None
    chat: ChatRules = ChatRules()

    @property
    def separator_text(self) -> str | None:
        """The text that closes a step in a completion made for this judge, such as `<extra_0>` or ` ки`.

        None where it is blank lines (a raw text, TRL's newline), or the turns of a chat, which no completion holds.
        """
        if self.format == "raw" or not self.separator.strip() or (self.format == "tagged" and self.before):
            return None
        return self.separator

    def flat(self) -> dict[str, Any]:
        """All fields by name, those of `chat` among them: what decides the tokens of a text."""
        values = asdict(self)
        return {**values, **values.pop("chat")}
