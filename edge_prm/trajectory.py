"""Text of a trajectory: prompt, steps, and what separates them. Knows nothing about tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_prm.errors import InputError
from edge_prm.split import (
    LEADING_BLANK_LINES,
    STEP_SEPARATOR,
    cut_at,
    join_tags,
    kinds_of,
    shown,
    split_completion,
    splitter,
    tags_only,
)

KINDS = ("thinking", "response")


@dataclass(frozen=True)
class Step:
    """A step: its text, the separator that follows it (verbatim), its kind (`thinking` or `response`), and its place.

    `place` is the index of the step in the list that was given, or among the steps of the completion. It differs from
    the index in the trajectory where an item of the list was empty or a tag.
    """

    text: str
    separator: str = ""
    kind: str = "response"
    place: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Trajectory:
    """A prompt and its ordered steps.

    `lead` is white space of a completion before its first step. `cut_at` is the bundle's own separator where the
    completion held it and was cut there, else "".

    Raises InputError for an empty prompt, no steps, an empty step, or text that is not a string or not valid Unicode.
    """

    prompt: str
    steps: tuple[Step, ...]
    lead: str = ""
    cut_at: str = ""

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not isinstance(self.steps, tuple) or not all(isinstance(step, Step) for step in self.steps):
            raise InputError("steps of a Trajectory are a tuple of Step; Trajectory.of takes lists and strings")
        if not self.steps:
            raise InputError("steps are empty; a trajectory needs at least one step")
        for index, step in enumerate(self.steps):
            _check_string(step.text, f"step {index}")
            _check_string(step.separator, f"separator of step {index}")
            if not step.text.strip():
                raise InputError(f"step {index} is empty ({shown(step.text)}); leave it out")
            if step.kind not in KINDS:
                raise InputError(f"kind of step {index} is {step.kind!r}; it is one of {', '.join(KINDS)}")
        _check_string(self.lead, "lead")

    @classmethod
    def of(
        cls,
        prompt: str,
        steps: str | Sequence[str],
        *,
        split: str = "auto",
        separator: str | None = None,
        thinking: str | Sequence[str] = (),
        skip_empty: bool = False,
    ) -> Trajectory:
        """Make a trajectory of a completion (one string, divided as `split` says) or of a list of steps.

        A completion keeps its separators verbatim. Steps of a list lose the newlines at their ends and are joined
        with a blank line. `split` is `auto` or `blank` (blank lines), `lines`, or a regular expression that matches
        separators. `separator` is the step separator of the bundle: under `auto`, a completion that holds it is cut
        there. `thinking` is reasoning that comes before the steps, given apart from them; its steps have the kind
        `thinking`. `skip_empty` leaves empty steps of a list out instead of refusing them; the others keep their
        `place`.

        Raises InputError for an empty prompt, no steps, an empty step or anything that is not a string.
        """
        check_prompt(prompt)
        splitter(split)
        if not isinstance(thinking, str):
            thinking = as_list(thinking, "thinking")  # type: ignore[assignment]  # its items are checked below
        if not thinking:
            lead, parts, cut = _parts(steps, split, separator, skip_empty)
            return cls(prompt, tuple(Step(*part) for part in parts), lead, cut)
        lead, thoughts, cut = _parts(thinking, split, separator, skip_empty)
        made = [Step(text, between, "thinking", place) for text, between, _, place in thoughts]
        if isinstance(steps, str) and not steps.strip():  # the answer is empty: a generation that was cut off
            return cls(prompt, tuple(made), lead, cut)
        made[-1] = Step(made[-1].text, STEP_SEPARATOR, "thinking", made[-1].place)
        _, parts, cut = _parts(steps, split, separator, skip_empty)
        after = made[-1].place + 1
        made += [Step(text, between, kind, place + after) for text, between, kind, place in parts]
        return cls(prompt, tuple(made), lead, cut)

    @property
    def completion(self) -> str:
        """Everything after the prompt, verbatim."""
        return self.lead + "".join(step.text + step.separator for step in self.steps)


def check_prompt(prompt: object) -> str:
    """Return the prompt if it is a string with something in it; InputError otherwise."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt is {type(prompt).__name__}, not a string: {shown(prompt)}")
    if not prompt.strip():
        raise InputError(f"prompt is empty ({prompt!r}); a reward needs a problem to judge against")
    return _check_string(prompt, "prompt")


def check_step(text: object, place: str) -> str:
    """Return a step of a list without blank lines at its ends; InputError when nothing or no text is left."""
    bare = _bare(text, place)
    if not bare.strip():
        raise InputError(f"{place} is empty ({shown(text)}); leave it out")
    if tags_only(bare):
        raise InputError(f"{place} holds only a tag ({shown(text)}); give it together with the step it belongs to")
    return bare


def as_list(steps: object, name: str = "steps") -> list[object]:
    """Return steps as a list; numpy arrays and other sequences are taken. InputError for what is no list."""
    if hasattr(steps, "tolist") and not isinstance(steps, (str, bytes)):  # numpy arrays, pandas columns
        steps = steps.tolist()
    if isinstance(steps, (str, bytes, dict)) or not isinstance(steps, Sequence):
        raise InputError(f"{name} are {type(steps).__name__}; give a list of strings, or the completion as one string")
    return list(steps)


_Part = tuple[str, str, str, int]
"""Text, separator, kind and place of a step."""


def _parts(steps: object, split: str, separator: str | None, skip_empty: bool) -> tuple[str, list[_Part], str]:
    """Lead, parts, and the bundle's own separator where a completion was cut at it."""
    if not isinstance(steps, str):
        return "", _of_list(as_list(steps), skip_empty), ""
    _check_string(steps, "completion")
    if not steps.strip():
        raise InputError(f"completion is empty ({shown(steps)}); a trajectory needs at least one step")
    if split == "auto" and (pieces := cut_at(steps, separator)):
        kept: list[object] = [piece for piece in pieces if piece.strip()]
        if not kept:
            raise InputError(f"completion {shown(steps)} holds separators only; a trajectory needs at least one step")
        return "", _of_list(kept, skip_empty), (separator or "").strip()
    lead, texts, separators = split_completion(steps, split)
    if not texts:
        what = "tags only" if tags_only(steps) else "separators only"
        raise InputError(f"completion {shown(steps)} holds {what}; a trajectory needs at least one step")
    kinds = kinds_of(texts)
    return lead, list(zip(texts, separators, kinds, range(len(texts)), strict=True)), ""


def _of_list(steps: list[object], skip_empty: bool) -> list[_Part]:
    if not steps:
        raise InputError("steps are an empty list; a trajectory needs at least one step")
    texts, places = [], []
    for index, step in enumerate(steps):
        text = _bare(step, f"step {index}")
        if text.strip():
            texts.append(text)
            places.append(index)
        elif not skip_empty:
            raise InputError(f"step {index} is empty ({shown(step)}); leave it out")
    texts, _, places = join_tags(texts, [STEP_SEPARATOR] * len(texts), places)
    if not texts:
        raise InputError("steps hold nothing but white space and tags; a trajectory needs at least one step")
    separators = [STEP_SEPARATOR] * (len(texts) - 1) + [""]
    return list(zip(texts, separators, kinds_of(texts), places, strict=True))


def _bare(text: object, place: str) -> str:
    """A step of a list without blank lines at its ends."""
    if not isinstance(text, str):
        raise InputError(f"{place} is {type(text).__name__}, not a string: {shown(text)}")
    return _check_string(LEADING_BLANK_LINES.sub("", text).rstrip("\r\n"), place)


def _check_string(text: object, place: str) -> str:
    """Return `text`; InputError if it is no string, or holds a lone surrogate, which no tokenizer can read."""
    if not isinstance(text, str):
        raise InputError(f"{place} is {type(text).__name__}, not a string: {shown(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place} is not valid Unicode: character {error.start} is a lone surrogate") from None
    return text
