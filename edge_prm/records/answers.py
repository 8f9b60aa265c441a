"""Rows that hold answers: steps, a completion, reasoning apart from an answer, or several candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from edge_prm.errors import InputError
from edge_prm.records.labels import labels_of
from edge_prm.records.names import CANDIDATES, COMPLETIONS, CORRECT, REASONING, REFERENCE
from edge_prm.records.record import Candidate, Fields, Labels
from edge_prm.records.row import RowFields, message_text, names, role_of, sequence, text, texts, truth
from edge_prm.split import shown


class Read(NamedTuple):
    """What a format finds in a row; `id` is None where the row's usual id is meant."""

    prompt: str
    candidates: tuple[Candidate, ...]
    several: bool = False
    notes: tuple[str, ...] = ()
    id: Any = None


def single(prompt: str, *parts: Any, notes: tuple[str, ...] = ()) -> Read:
    """A row with one answer; `parts` are a Candidate's steps and thinking."""
    return Read(prompt, (Candidate(*parts),), notes=notes)


def steps(row: RowFields) -> Read:
    """A problem and a list of steps."""
    return single(row.prompt(), texts(row["steps"], "steps"))


def completion(row: RowFields) -> Read:
    """A problem and an answer as text, with reasoning apart where the row has it."""
    name = next(name for name in COMPLETIONS if name in row)
    thinking = next((text(row[key], key) for key in REASONING if key in row), "")
    return single(row.prompt(), _answer_text(row[name], name), thinking)


def reference_solution(row: RowFields) -> Read:
    """`solution` is the answer only where the row has no field of answers, not even an empty one."""
    answers = [name for name in (*CANDIDATES, *COMPLETIONS[:-1], "messages", "steps", "attempt") if name in row.raw]
    if answers:
        raise InputError(
            f"{answers[0]} is null, and {REFERENCE} next to it is a reference solution, which is not scored; "
            f"--completion-field {REFERENCE} scores it all the same"
        )
    return completion(row)


def reasoning(row: RowFields) -> Read:
    """`content` and the reasoning that an API returns next to it."""
    thinking, content = message_text(row, "the row")
    return single(row.prompt(), content, thinking)


def open_thoughts(row: RowFields) -> Read:
    """OpenThoughts with its metadata: reasoning and solution are columns of their own."""
    return single(
        row.prompt(), text(row["deepseek_solution"], "deepseek_solution"), text(row["deepseek_reasoning"], "reasoning")
    )


def s1k(row: RowFields) -> Read:
    """s1K: `solution` is a reference, the answer is `attempt` after one trajectory of thinking."""
    found = texts(sequence(row["thinking_trajectories"], "thinking_trajectories"), "thinking_trajectories")
    if len(found) > 1:
        raise InputError(
            f"thinking_trajectories hold {len(found)} texts; name the one to score with "
            "--completion-field thinking_trajectories.0"
        )
    return single(row.prompt(), text(row.get("attempt", ""), "attempt"), found[0])


def s1k_11(row: RowFields) -> Read:
    """s1K-1.1: a trajectory and an attempt of each generator; where there are two, they are candidates."""
    found = [
        Candidate(
            text(row.get(f"{name}_attempt", ""), f"{name}_attempt"),
            text(row[f"{name}_thinking_trajectory"], f"{name}_thinking_trajectory"),
            name=name,
        )
        for name in ("deepseek", "gemini")
        if f"{name}_thinking_trajectory" in row
    ]
    return Read(row.prompt(), tuple(found), several=len(found) > 1)


def lm_eval(row: RowFields) -> Read:
    """Samples of lm-evaluation-harness: the question lies in `doc`, the answers in `resps`, a list for each request."""
    given = Fields() if row.given.prompt is None else row.given
    question = row if given.prompt else RowFields(row["doc"] if isinstance(row["doc"], Mapping) else {}, given)
    responses = sequence(row["resps"], "resps")
    if len(responses) != 1 or not isinstance(responses[0], (list, tuple)):
        raise InputError(
            f"resps hold {len(responses)} requests; name the answer with --completion-field resps.0.0, "
            "and its question with --prompt-field"
        )
    found = tuple(map(candidate_of, sequence(responses[0], "resps")))
    return Read(question.prompt(), found, several=len(found) > 1)


def candidates(row: RowFields) -> Read:
    """Several answers to one problem. `solution` next to them is a reference, and is not scored."""
    present = [name for name in CANDIDATES if name in row]
    name = present[0]
    found = list(map(candidate_of, _candidate_list(row[name], name)))
    right = next((row[key] for key in CORRECT if isinstance(row.get(key), (list, tuple))), None)
    if right is not None and len(right) == len(found):
        found = [
            candidate if candidate.correct is not None else _with_truth(candidate, value)
            for candidate, value in zip(found, right, strict=True)
        ]
    others = [key for key in (*present[1:], "steps", *COMPLETIONS[:-1]) if key in row]
    notes = tuple(f"{other}: the answers are {name}" for other in others)
    several = name != "outputs" or len(found) > 1  # vLLM's list, which mostly holds one
    return Read(row.prompt(), tuple(found), several, notes)


def named_fields(row: RowFields) -> Read:
    """The fields that the user names."""
    given = row.given
    prompt = row.prompt()
    if given.candidates:
        items = _candidate_list(row.at(given.candidates), given.candidates)
        return Read(prompt, tuple(map(candidate_of, items)), True)
    if given.steps:
        steps = texts(row.at(given.steps), given.steps)
        return Read(prompt, (Candidate(steps, labels=labels_of(row, len(steps))),))
    name = given.completion or ""
    return single(prompt, _answer_text(row.at(name), name))


def candidate_of(item: Any) -> Candidate:
    """A candidate of a list: text, a list of steps, messages, or an object with one of these.

    What cannot be read is a Candidate with its error, so that the others can be scored.
    """
    try:
        return _candidate(item)
    except InputError as error:
        return Candidate(error=str(error))


def _candidate(item: Any) -> Candidate:
    if isinstance(item, str):
        return Candidate(item)
    if isinstance(item, (list, tuple)):
        if item and all(isinstance(part, Mapping) for part in item):
            return _last_answer(item)
        return Candidate(tuple(item))  # checked, with its index, where the trajectory is made
    if not isinstance(item, Mapping):
        raise InputError(f"it is {type(item).__name__}, neither a string nor an object with text")
    return _with_truth(_of_object(item), item.get("correct"), item.get("answer"))


def _of_object(item: Mapping[str, Any]) -> Candidate:
    if isinstance(item.get("message"), Mapping):
        return _of_object(item["message"])
    if item.get("steps") is not None:
        found = item["steps"]
        return Candidate(tuple(found)) if isinstance(found, (list, tuple)) else Candidate(text(found, "steps"))
    if isinstance(item.get("messages"), (list, tuple)):
        return _last_answer(item["messages"])
    for name in ("text", *COMPLETIONS[:-1], REFERENCE):
        if item.get(name) is not None:
            thinking = next((text(item[key], key) for key in REASONING if item.get(key)), "")
            value = item[name]
            return Candidate(tuple(value) if isinstance(value, (list, tuple)) else text(value, name), thinking)
    if "content" in item or "value" in item or any(key in item for key in REASONING):
        thinking, content = message_text(item, "it")
        return Candidate(content, thinking)
    raise InputError(f"it has no text; its fields are {names(item)}")


def _last_answer(messages: Any) -> Candidate:
    """The one assistant's turn of a list of messages."""
    turns = [message for message in messages if role_of(message) in ("assistant", "gpt", "model", "")]
    if len(turns) != 1:
        raise InputError(f"it holds {len(turns)} assistant messages, not one")
    thinking, content = message_text(turns[0], "the message")
    return Candidate(content, thinking)


def _with_truth(candidate: Candidate, correct: Any, answer: Any = None) -> Candidate:
    labels = candidate.labels
    try:
        right = truth(correct, "correct")
    except InputError as error:
        right, labels = None, Labels(missing=str(error))
    given = None if answer is None else str(answer)
    return replace(candidate, correct=right, answer=given if given is not None else candidate.answer, labels=labels)


def _candidate_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{name} are missing, empty or not a list ({shown(value)})")
    return list(value)


def _answer_text(value: Any, name: str) -> str:
    if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
        raise InputError(f"{name} is a message, not a string; --completion-field {name}.content names its text")
    return text(value, name)
