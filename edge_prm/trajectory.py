"""Text of a trajectory: prompt, steps, and what stands between them. Knows nothing about tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edge_prm.errors import InputError

STEP_SEPARATOR = "\n\n"
_NEWLINE = r"(?:\r\n|\r(?!\n)|\n)"  # one line end of Windows is never taken for two
# A separator runs to the last newline before the next step, white-space-only lines included: a tokenizer may join
# all of a white-space run that ends in a newline, and the token that closes a step must not depend on what follows.
_SPLITS = {
    "blank": re.compile(rf"{_NEWLINE}{{2}}(?:\s*[\r\n])?"),
    "lines": re.compile(rf"{_NEWLINE}(?:\s*[\r\n])?"),
}
_LEADING_BLANK_LINES = re.compile(r"\A(?:\s*[\r\n])?")
_THINKING = re.compile(r"<think>|</think>")


@dataclass(frozen=True)
class Step:
    """One step: its text, the separator that stood behind it (verbatim), and its kind, `thinking` or `response`."""

    text: str
    separator: str = ""
    kind: str = "response"


@dataclass(frozen=True)
class Trajectory:
    """A prompt and its ordered steps; `lead` is blank space of a completion before its first step."""

    prompt: str
    steps: tuple[Step, ...]
    lead: str = ""

    @classmethod
    def of(cls, prompt: str, steps: str | Sequence[str], *, split: str = "blank") -> Trajectory:
        """Make a trajectory of a completion (one string, split as `split` says) or of a list of steps.

        A completion keeps its separators verbatim. Steps of a list lose the newlines at their ends and are joined
        with a blank line. `split` is `blank`, `lines`, or a regular expression that matches separators.
        Raises InputError for an empty prompt, no steps, an empty step or anything that is not a string.
        """
        check_prompt(prompt)
        if isinstance(steps, str):
            return _from_completion(prompt, steps, split)
        texts = _check_steps(steps)
        kinds = _kinds(texts)
        last = len(texts) - 1
        return cls(
            prompt,
            tuple(
                Step(text, STEP_SEPARATOR if index < last else "", kind)
                for index, (text, kind) in enumerate(zip(texts, kinds, strict=True))
            ),
        )

    @property
    def completion(self) -> str:
        """Everything after the prompt, verbatim."""
        return self.lead + "".join(step.text + step.separator for step in self.steps)


def check_prompt(prompt: object) -> str:
    """Return the prompt if it is a string with something in it; InputError otherwise."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt is {type(prompt).__name__}, not a string: {_shown(prompt)}")
    if not prompt.strip():
        raise InputError(f"prompt is empty ({prompt!r}); a reward needs a problem to judge against")
    return check_text(prompt, "prompt")


def check_step(text: object, place: str) -> str:
    """Return one step of a list without blank lines at its ends; InputError when nothing or no text is left."""
    if not isinstance(text, str):
        raise InputError(f"{place} is {type(text).__name__}, not a string: {_shown(text)}")
    bare = _LEADING_BLANK_LINES.sub("", text).rstrip("\r\n")
    if not bare.strip():
        raise InputError(f"{place} is empty ({_shown(text)}); leave it out")
    return check_text(bare, place)


def check_text(text: str, place: str) -> str:
    """Return `text`; InputError if it holds a lone surrogate, which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place} is not valid Unicode: character {error.start} is a lone surrogate") from None
    return text


def _check_steps(steps: object) -> list[str]:
    if isinstance(steps, (bytes, dict)) or not isinstance(steps, Sequence):
        raise InputError(f"steps are {type(steps).__name__}; give a list of strings, or the completion as one string")
    if not steps:
        raise InputError("steps are an empty list; a trajectory needs at least one step")
    return [check_step(step, f"step {index}") for index, step in enumerate(steps)]


def _from_completion(prompt: str, completion: str, split: str) -> Trajectory:
    check_text(completion, "completion")
    if not completion.strip():
        raise InputError(f"completion is empty ({_shown(completion)}); a trajectory needs at least one step")
    lead = _LEADING_BLANK_LINES.match(completion).group()  # type: ignore[union-attr]  # matches the empty string too
    texts: list[str] = []
    separators: list[str] = []
    start = len(lead)
    for match in splitter(split).finditer(completion, start):
        if match.end() == match.start():
            continue
        text = completion[start : match.start()]
        if text.strip():
            texts.append(text)
            separators.append(match.group())
        elif separators:  # two separators with nothing but white space between them are one
            separators[-1] += text + match.group()
        else:
            lead += text + match.group()
        start = match.end()
    rest = completion[start:]
    if rest.strip():
        texts.append(rest)
        separators.append("")
    elif separators:
        separators[-1] += rest
    if not texts:
        raise InputError(f"completion {_shown(completion)} holds separators only; a trajectory needs at least one step")
    steps = zip(texts, separators, _kinds(texts), strict=True)
    return Trajectory(prompt, tuple(Step(*step) for step in steps), lead)


def splitter(split: str) -> re.Pattern[str]:
    """Return the pattern that matches step separators; InputError for a regular expression that does not compile."""
    names = " or ".join(_SPLITS)
    if not isinstance(split, str):
        raise InputError(f"split is {type(split).__name__}, not a string: {_shown(split)}; give {names} or a pattern")
    if split in _SPLITS:
        return _SPLITS[split]
    try:
        return re.compile(split)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"split {split!r} is not {names} and not a regular expression ({error})") from None


def _kinds(texts: Sequence[str]) -> list[str]:
    """A step that begins inside `<think>…</think>` is thinking; one that closes it ends as thinking too."""
    kinds = []
    inside = False
    for text in texts:
        marks = _THINKING.findall(text)
        begins_inside = inside or text.lstrip().startswith("<think>")
        if marks:
            inside = marks[-1] == "<think>"
        kinds.append("thinking" if begins_inside else "response")
    return kinds


def _shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
