"""Formats of rows. Each is one function and one line of `FORMATS`; the first whose keys a row has reads it.

edge-prm        {problem, steps | completion}, {problem, candidates: [...]}
ProcessBench    {problem, steps, label, final_answer_correct}                        arxiv.org/abs/2412.06559
PRM800K         {question: {problem}, label: {steps: [{completions: [...]}]}}        github.com/openai/prm800k
PRMBench        {modified_question, modified_process, error_steps}                   arxiv.org/abs/2501.03124
Math-Shepherd   {input, label, task}: steps end with a tag
stepwise        {prompt, completions, labels}, as TRL has it, and {prompt, steps, labels}
s1K             {question, thinking_trajectories, attempt}; s1K-1.1 with deepseek_* and gemini_*
OpenThoughts    {problem, deepseek_reasoning, deepseek_solution}, and conversations
reasoning       {prompt, reasoning_content | reasoning, content}
messages        {messages: [{role, content}]}, {conversations: [{from, value}]}
lm-eval         {doc, resps}
vLLM, OpenAI    {prompt, outputs: [{text}]}, {choices: [{message}]}
candidates      generations, responses, completions, samples: OpenR1-Math, search-and-learn
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edge_prm.errors import InputError
from edge_prm.records import answers, benchmarks, conversations
from edge_prm.records.names import CANDIDATES, COMPLETIONS, REASONING, REFERENCE
from edge_prm.records.record import Candidate, Fields, Record
from edge_prm.records.row import RowFields, names


class Format(NamedTuple):
    """`matches` looks at the keys, and at types of values where keys are shared; `read` returns what Record needs."""

    name: str
    matches: Callable[[RowFields], bool]
    read: Callable[[RowFields], answers.Read]


def _has(*keys: str) -> Callable[[RowFields], bool]:
    return lambda row: all(key in row for key in keys)


FORMATS = (
    Format("PRMBench", _has("modified_process"), benchmarks.prmbench),
    Format("PRM800K", lambda row: isinstance(row.get("label"), dict) and "question" in row, benchmarks.prm800k),
    Format("Math-Shepherd", lambda row: benchmarks.is_math_shepherd(row), benchmarks.math_shepherd),
    Format("stepwise", lambda row: "labels" in row and ("completions" in row or "steps" in row), benchmarks.stepwise),
    Format("lm-eval", _has("doc", "resps"), answers.lm_eval),
    Format("s1K", _has("thinking_trajectories"), answers.s1k),
    Format("s1K-1.1", _has("deepseek_thinking_trajectory"), answers.s1k_11),
    Format("s1K-1.1", _has("gemini_thinking_trajectory"), answers.s1k_11),
    Format("OpenThoughts", _has("deepseek_reasoning", "deepseek_solution"), answers.open_thoughts),
    Format("choices", lambda row: conversations.choices_of(row) is not None, conversations.choices),
    Format("candidates", lambda row: any(key in row for key in CANDIDATES), answers.candidates),
    Format("ProcessBench", _has("steps", "label"), benchmarks.process_bench),
    Format("steps", _has("steps"), answers.steps),
    Format("reasoning", lambda row: "content" in row and any(key in row for key in REASONING), answers.reasoning),
    Format("completion", lambda row: any(key in row for key in COMPLETIONS[:-1]), answers.completion),
    Format("messages", _has("messages"), conversations.messages),
    Format("conversations", _has("conversations"), conversations.messages),
    Format("completion", _has(REFERENCE), answers.reference_solution),
)


def read_row(place: str, number: int, values: Mapping[str, Any], fields: Fields, typed: bool = True) -> Record:
    """Read a row; InputError that names what is missing or of the wrong type."""
    row = RowFields(values, fields, typed)
    form = _format(row)
    try:
        read = form.read(row)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a row of {form.name} as it is published ({type(error).__name__}: {error})") from None
    id_ = row.id(number) if read.id is None or fields.id else read.id
    notes = (*read.notes, *(note for candidate in read.candidates for note in _empty_steps(candidate)))
    return Record(place, number, id_, form.name, read.prompt, read.candidates, read.several, notes)


def _empty_steps(candidate: Candidate) -> list[str]:
    """Empty steps of a list with labels are not scored; the others keep their places, so that labels fit."""
    if candidate.labels.right is None or isinstance(candidate.steps, str):
        return []
    return ["an empty step" for step in candidate.steps if not step.strip()]


def _format(row: RowFields) -> Format:
    given = row.given
    if given.candidates or given.steps or given.completion:
        return Format("named fields", lambda _: True, answers.named_fields)
    for form in FORMATS:
        if form.matches(row):
            return form
    raise InputError(
        f"no steps (a list), {', '.join(COMPLETIONS[:3])}, candidates or messages; its fields are {names(row.raw)}"
        " (--completion-field names another)"
    )
