"""The file that `edge-prm bench reference` writes: what was run on what, then the rewards of each trace.

The first line is a header, every other line a trace: `{"id", "rewards", "tokens"}`, or `{"id", "skipped"}` with the
reason. Only lines that end are counted, so a killed run is resumed after its last complete line. Every number is
finite: a trace with a reward of NaN is skipped. Knows no torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_prm.errors import InputError, OutputError
from edge_prm.output import lock
from edge_prm_bench.data import Data

FORMAT = "edge-prm-reference"
FORMAT_VERSION = 2
"""2: the header names the head's tokens, the input format and the context; version 1 could not, and read some texts
without the token at their beginning."""
_HEADER_START = json.dumps({"format": FORMAT})[:-1].encode()


@dataclass(frozen=True)
class Provenance:
    """What a reference was made from; two runs with the same provenance give one file.

    `tokens` are those of a token pair, `input` the fields of the manifest's InputFormat, `context_length` the longest
    text in tokens, `compared_with` the tokenizer of transformers that agreed about every text.
    """

    checkpoint: str
    checkpoint_sha256: str
    tokenizer_sha256: str
    head: str
    dtype: str
    device: str
    batch_size: int
    data: str
    data_sha256: str
    split: str
    traces: int
    versions: dict[str, str] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    input: dict[str, Any] = field(default_factory=dict)
    context_length: int = 0
    compared_with: str = ""

    def header(self) -> str:
        """The first line of the file."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}) + "\n"


@dataclass(frozen=True)
class Row:
    """Rewards of one trace, or why it was not scored."""

    id: str
    rewards: tuple[float, ...] | None
    tokens: int = 0
    skipped: str = ""

    def line(self) -> str:
        """This row as a line of the file; ValueError for a reward that is not finite."""
        outcome = {"skipped": self.skipped} if self.rewards is None else {"rewards": self.rewards}
        return json.dumps({"id": self.id, "tokens": self.tokens, **outcome}, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Reference:
    place: str
    provenance: Provenance
    rows: tuple[Row, ...]

    def rewards_for(self, data: Data) -> list[tuple[float, ...] | None]:
        """Rewards of each trace of `data`, None where it was skipped; InputError when it was made from other data."""
        if data.sha256 != self.provenance.data_sha256:
            raise InputError(
                f"{self.place} was made from other data ({self.provenance.data}, {self.provenance.traces} traces) than "
                f"{data.name} with {len(data.traces)} traces; give the file it was made from, or make it anew"
            )
        rewards = {row.id: row.rewards for row in self.rows}
        missing = [trace.id for trace in data.traces if trace.id not in rewards]
        if missing:
            raise InputError(
                f"{self.place} is not complete: {len(missing)} of {len(data.traces)} traces are missing; "
                "run the same `edge-prm bench reference` again, it goes on where it stopped"
            )
        for trace in data.traces:
            found = rewards[trace.id]
            if found is not None and len(found) != len(trace.trajectory.steps):
                raise InputError(f"{self.place}: {trace.id} has {len(found)} rewards for {len(trace.texts)} steps")
        return [rewards[trace.id] for trace in data.traces]


def read_reference(path: str | Path) -> Reference:
    """Read a reference file; InputError when it is none, or of a newer edge-prm."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path} cannot be read ({reason})") from None
    whole = text[: text.rfind("\n") + 1].splitlines()
    values = [_parsed(path, number, line) for number, line in enumerate(whole, start=1)]
    if not values or values[0].get("format") != FORMAT:
        raise InputError(f"{path} is not a reference file; write one with `edge-prm bench reference`")
    header = values[0]
    if header.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {header.get('format_version')!r} and this edge-prm reads {FORMAT_VERSION}; "
            "make it anew, or update edge-prm"
        )
    try:
        header["tokens"] = tuple(header["tokens"])
        provenance = Provenance(**{f.name: header[f.name] for f in fields(Provenance)})
        rows = tuple(
            Row(str(v["id"]), None if "rewards" not in v else _finite(v["rewards"]), v.get("tokens", 0),
                v.get("skipped", "")) for v in values[1:]
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); make it anew") from None
    return Reference(str(path), provenance, rows)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}, line {number} is not a line of a reference file; write one with `edge-prm bench reference`"
        )
    return value


def _finite(rewards: Any) -> tuple[float, ...]:
    values = tuple(map(float, rewards))
    if not all(map(math.isfinite, values)):
        raise ValueError(f"rewards {values}")
    return values


class ReferenceWriter:
    """Appends rows to a file; a file that is there already is resumed after its last complete line.

    One process at a time: a lock is held on the file until close(), and the system drops it however a process ends.
    InputError when the file was made from something else than `provenance`, with the first thing that differs, or is
    being written by another process; OutputError when the system refuses.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self._path = path
        check_output(path, provenance)  # before it is opened, which creates it
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            if lock(self._file.fileno()) is False:  # where there are no locks, one run at a time is left to the user
                raise InputError(f"{path} is being written by another process; wait for it, or choose another output")
            self.done = check_output(path, provenance)  # what another process wrote until it ended
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)
            if not end:
                self._append(provenance.header())
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> ReferenceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; they are on the disk when this returns."""
        try:
            self._append("".join(row.line() for row in rows))
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the file, and let others write it."""
        self._file.close()

    def _append(self, text: str) -> None:
        """All of it in one system call, so that a kill leaves at most one line without an end."""
        data = text.encode()
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path} cannot be written: {error.strerror or error}; what it holds is kept, run the same again"
        )


def check_output(path: Path, provenance: Provenance) -> set[str]:
    """Ids of the traces that a file holds already; nothing is changed.

    InputError when it was begun with another provenance or is a file of another kind, OutputError when there is no
    place for it.
    """
    if path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a folder; give the name of a file")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {parent}; make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission")
    if not path.exists():
        return set()
    content = path.read_bytes()
    if b"\n" not in content:
        if not (content.startswith(_HEADER_START) or _HEADER_START.startswith(content)):  # no header that was cut
            raise InputError(f"{path} holds something else than a reference; choose another output")
        return set()
    old = read_reference(path)
    _check_same(old, provenance)
    return {row.id for row in old.rows}


def _check_same(old: Reference, new: Provenance) -> None:
    for f in fields(Provenance):
        before, now = (json.loads(json.dumps(getattr(made, f.name))) for made in (old.provenance, new))
        if before != now:
            raise InputError(
                f"{old.place} was begun with {f.name} {before!r} and this run has {now!r}; "
                "finish it as it was begun, or choose another output"
            )
