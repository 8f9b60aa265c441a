"""A row as every command sees it, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from edge_prm.errors import InputError
from edge_prm.trajectory import Trajectory

Steps = str | tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    """What a row says about its steps.

    `right`: for each item of the list of steps, whether it and all before it are right; None where the row does not
    say. `missing` is the reason why the row has no usable labels, "" where it has some or never had any.
    """

    right: tuple[bool | None, ...] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Candidate:
    """An answer: its steps (a list, or a completion that is still to be split), and reasoning that was given apart.

    `correct`: whether its final answer is right, None where the row does not say; `answer` is that answer. `error` is
    why it cannot be read, "" where it can.
    """

    steps: Steps = ()
    thinking: str | tuple[str, ...] = ()
    correct: bool | None = None
    answer: str | None = None
    labels: Labels = field(default_factory=Labels)
    error: str = ""
    name: str = ""

    def trajectory(self, prompt: str, split: str, separator: str | None) -> Trajectory:
        """The candidate as a trajectory; InputError when it cannot be one."""
        if self.error:
            raise InputError(self.error)
        return Trajectory.of(
            prompt,
            self.steps,
            split=split,
            separator=separator,
            thinking=self.thinking,
            skip_empty=self.labels.right is not None,
        )


@dataclass(frozen=True)
class Record:
    """A row: its place in the file, id, format, prompt and answers.

    `several` says that the row is a list of answers, of which there may be one. `notes` say what was left out of it.
    """

    place: str
    number: int
    id: Any
    format: str
    prompt: str
    candidates: tuple[Candidate, ...]
    several: bool = False
    notes: tuple[str, ...] = ()

    def with_notes(self, *notes: str) -> Record:
        """The same record with more notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    place: str
    number: int
    reason: str
    id: Any = None


@dataclass(frozen=True)
class Fields:
    """Names of fields that a user gives in place of the detected ones; a dot leads into a field: `doc.question`."""

    prompt: str | None = None
    steps: str | None = None
    completion: str | None = None
    candidates: str | None = None
    id: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are given."""
        return tuple(filter(None, (self.prompt, self.steps, self.completion, self.candidates, self.id)))

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "completion", "candidates") if getattr(self, name)]
        if len(given) > 1:
            options = " and ".join(f"--{name}-field" for name in given)
            raise InputError(f"{options} exclude each other; name the field that holds what is to be scored")
