"""The file that `edge-prm bench reference` writes: a journal with the rewards of each trace.

The first line is a header, which says what was run on what. Every other line is a trace: `{"id", "tokens", "rewards"}`,
or `{"id", "tokens", "skipped"}` with the reason. Every number is finite: a trace with a reward of NaN is skipped. This
module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_prm.errors import InputError
from edge_prm.journal import Journal, JournalFile, JournalHeader, check_journal, read_journal
from edge_prm_bench.data import Data

FORMAT = "edge-prm-reference"
FORMAT_VERSION = 2
"""2: the header has the head's tokens, the input format and the context length. In version 1 it had not, and some texts
were read without the token at their beginning."""
_NOUN, _REMEDY = "reference file", "write one with `edge-prm bench reference`"


@dataclass(frozen=True)
class ScoredCheckpoint:
    """What was run. `tokens`: of a token pair; `input`: fields of the manifest's InputFormat; `context_length`: in
    tokens; `compared_with`: the tokenizer of transformers that agreed on every text."""

    name: str
    sha256: str
    tokenizer_sha256: str
    head: str
    tokens: tuple[str, ...] = ()
    input: Mapping[str, Any] = field(default_factory=dict)
    context_length: int = 0
    compared_with: str = ""


@dataclass(frozen=True)
class TorchRun:
    """How torch ran it: dtype (fp32, bf16), device (cpu, cuda), texts in a batch, versions of packages by name."""

    dtype: str
    device: str
    batch_size: int
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredData:
    """On what: the name of the file, Data.sha256 of the traces, how they were split, and their number."""

    name: str
    sha256: str
    split: str
    traces: int


@dataclass(frozen=True)
class Provenance:
    """What a reference was made from; two runs with the same provenance continue one file."""

    checkpoint: ScoredCheckpoint
    run: TorchRun
    data: ScoredData

    def journal_header(self) -> JournalHeader:
        """The header of the file, whose keys are flat; ValueError for a number that is not finite."""
        checkpoint, run, data = self.checkpoint, self.run, self.data
        values = {
            "checkpoint": checkpoint.name, "checkpoint_sha256": checkpoint.sha256,
            "tokenizer_sha256": checkpoint.tokenizer_sha256, "head": checkpoint.head,
            "dtype": run.dtype, "device": run.device, "batch_size": run.batch_size,
            "data": data.name, "data_sha256": data.sha256, "split": data.split, "traces": data.traces,
            "versions": dict(run.versions), "tokens": list(checkpoint.tokens), "input": dict(checkpoint.input),
            "context_length": checkpoint.context_length, "compared_with": checkpoint.compared_with,
        }  # fmt: skip
        return JournalHeader(FORMAT, FORMAT_VERSION, values, noun=_NOUN, remedy=_REMEDY)

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Provenance:
        """The inverse of `journal_header`; KeyError or TypeError for a header that lacks a key."""
        checkpoint = ScoredCheckpoint(
            header["checkpoint"], header["checkpoint_sha256"], header["tokenizer_sha256"], header["head"],
            tuple(header["tokens"]), header["input"], header["context_length"], header["compared_with"],
        )  # fmt: skip
        run = TorchRun(header["dtype"], header["device"], header["batch_size"], header["versions"])
        data = ScoredData(header["data"], header["data_sha256"], header["split"], header["traces"])
        return cls(checkpoint, run, data)


@dataclass(frozen=True)
class Row:
    """Rewards of a trace in [0, 1] and the tokens of its text; `skipped` is the reason where it was not scored."""

    id: str
    rewards: tuple[float, ...] | None
    tokens: int = 0
    skipped: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row as a line of the file."""
        outcome = {"skipped": self.skipped} if self.rewards is None else {"rewards": list(self.rewards)}
        return {"id": self.id, "tokens": self.tokens, **outcome}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The inverse of `as_dict`; KeyError, TypeError or ValueError for a line that is damaged."""
        rewards = None if "rewards" not in values else tuple(map(float, values["rewards"]))
        if not all(map(math.isfinite, rewards or ())):
            raise ValueError(f"rewards {rewards}")
        return cls(str(values["id"]), rewards, values.get("tokens", 0), values.get("skipped", ""))


@dataclass(frozen=True)
class Reference:
    """A reference file as it was read; `place` names it in messages."""

    place: str
    provenance: Provenance
    rows: tuple[Row, ...]

    def rewards_for(self, data: Data) -> list[tuple[float, ...] | None]:
        """Rewards of each trace of `data`, None where it was skipped.

        InputError when the reference was made from other data, or is not complete.
        """
        made_from = self.provenance.data
        if data.sha256 != made_from.sha256:
            raise InputError(
                f"{self.place} was made from other data ({made_from.name}, {made_from.traces} traces) than "
                f"{data.name} with {len(data.traces)} traces; give the file it was made from, or make it again"
            )
        rewards = {row.id: row.rewards for row in self.rows}
        if missing := sum(trace.id not in rewards for trace in data.traces):
            raise InputError(
                f"{self.place} is not complete: {missing} of {len(data.traces)} traces are missing; "
                "run the same `edge-prm bench reference` again: it continues after the last complete trace"
            )
        for trace in data.traces:
            of_trace = rewards[trace.id]
            if of_trace is not None and len(of_trace) != len(trace.texts):
                raise InputError(f"{self.place}: {trace.id} has {len(of_trace)} rewards for {len(trace.texts)} steps")
        return [rewards[trace.id] for trace in data.traces]


def read_reference(path: str | Path) -> Reference:
    """Read a reference file; InputError when it is not one, is damaged, or has another version of the format."""
    journal = read_journal(path, JournalHeader(FORMAT, FORMAT_VERSION, noun=_NOUN, remedy=_REMEDY))
    try:
        return Reference(str(path), Provenance.from_header(journal.header), _rows(journal))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error!r}); make it again") from None


def _rows(journal: JournalFile | Journal) -> tuple[Row, ...]:
    return tuple(Row.from_dict(values) for values in journal.rows())


def scored_ids(path: Path, provenance: Provenance) -> set[str]:
    """Ids of the traces that a file already has; nothing is written.

    InputError when it was begun with another provenance or is not a reference, OutputError when it cannot be written.
    """
    journal = check_journal(path, provenance.journal_header())
    return set() if journal is None else {row.id for row in read_reference(path).rows}


class ReferenceWriter:
    """Appends rows to a file; an existing file is continued after its last complete line. `done`: ids that it has.

    One process writes at a time. InputError when the file has another provenance, is not a reference, or is being
    written by another process; OutputError when the system refuses.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        scored_ids(path, provenance)
        self._journal = Journal(path, provenance.journal_header())
        self.done = {row.id for row in _rows(self._journal)}

    def __enter__(self) -> ReferenceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; they are on the disk when this returns. ValueError for a reward that is not finite."""
        self._journal.write(row.as_dict() for row in rows)

    def close(self) -> None:
        """Close the file, and let other processes write it."""
        self._journal.close()
