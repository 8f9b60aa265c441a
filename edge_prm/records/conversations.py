"""Rows that are chats: `messages`, ShareGPT's `conversations`, and answers of OpenAI's API and vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_prm.errors import InputError
from edge_prm.records.answers import Read, candidate_of, single
from edge_prm.records.names import ASSISTANT_ROLES, PROMPTS, SYSTEM_ROLES, USER_ROLES
from edge_prm.records.row import RowFields, message_text, role_of, sequence


def messages(row: RowFields) -> Read:
    """A chat with one question and one answer; a system message is left out and noted."""
    name = "messages" if "messages" in row else "conversations"
    turns = list(sequence(row[name], name))
    system = [turn for turn in turns if role_of(turn) in SYSTEM_ROLES]
    talk = [(index, turn) for index, turn in enumerate(turns) if role_of(turn) not in SYSTEM_ROLES]
    questions = [(index, turn) for index, turn in talk if role_of(turn) in USER_ROLES]
    answers = [(index, turn) for index, turn in talk if role_of(turn) in ASSISTANT_ROLES]
    if len(talk) != 2 or talk != questions[:1] + answers[:1]:
        raise InputError(_several_turns(name, turns, questions, answers))
    (_, question), (_, answer) = talk
    prompt = row.prompt() if row.given.prompt else message_text(question, f"the user's message of {name}")[1]
    thinking, content = message_text(answer, f"the assistant's message of {name}")
    notes = ("the system message",) if system or "system" in row else ()
    return single(prompt, content, thinking, notes=notes)


def _several_turns(name: str, turns: list[Any], questions: list[Any], answers: list[Any]) -> str:
    field = "value" if turns and isinstance(turns[-1], Mapping) and "value" in turns[-1] else "content"
    last = answers[-1][0] if answers else len(turns) - 1
    first = questions[0][0] if questions else 0
    return (
        f"{name} hold {len(answers)} assistant and {len(questions)} user messages, not one answer to one question; "
        f"name them with --prompt-field {name}.{first}.{field} --completion-field {name}.{last}.{field}"
    )


def choices_of(row: RowFields) -> list[Any] | None:
    """The list of choices of an answer of OpenAI's API, also inside a line of its batch output; None without one."""
    value: Any = row.get("choices")
    response = row.get("response")
    if value is None and isinstance(response, Mapping):
        body = response.get("body")
        value = body.get("choices") if isinstance(body, Mapping) else response.get("choices")
    return value if isinstance(value, list) else None


def choices(row: RowFields) -> Read:
    """Choices are candidates; the question is the row's prompt, or the one user message of its request."""
    found = list(map(candidate_of, sequence(choices_of(row), "choices")))
    return Read(_question(row), tuple(found), several=len(found) > 1)


def _question(row: RowFields) -> str:
    request = row.get("request", row.get("body"))
    for holder in (row, request if isinstance(request, Mapping) else {}):
        turns = holder.get("messages")
        if isinstance(turns, list) and not row.given.prompt and not any(name in row for name in PROMPTS):
            questions = [turn for turn in turns if role_of(turn) in USER_ROLES]
            if len(questions) == 1:
                return message_text(questions[0], "the user's message")[1]
    return row.prompt()
