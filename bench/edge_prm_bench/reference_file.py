"""The file that `edge-prm bench reference` writes: what was run on what, then the rewards of each trace.

The first line is a header, every other line a trace: `{"id", "rewards", "tokens"}`, or `{"id", "skipped"}` with the
reason. Only lines that end are counted, so a run that was killed goes on from its last whole line. Knows no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edge_prm.errors import InputError
from edge_prm_bench.data import Data

FORMAT = "edge-prm-reference"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """What a reference was made from; two runs with the same provenance give one file."""

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

    def header(self) -> str:
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}) + "\n"


@dataclass(frozen=True)
class Row:
    """Rewards of one trace, or why it was not scored."""

    id: str
    rewards: tuple[float, ...] | None
    tokens: int = 0
    skipped: str = ""

    def line(self) -> str:
        outcome = {"skipped": self.skipped} if self.rewards is None else {"rewards": self.rewards}
        return json.dumps({"id": self.id, "tokens": self.tokens, **outcome}) + "\n"


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
        provenance = Provenance(**{f.name: header[f.name] for f in fields(Provenance)})
        rows = tuple(
            Row(str(v["id"]), None if "rewards" not in v else tuple(map(float, v["rewards"])), v.get("tokens", 0),
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


class ReferenceWriter:
    """Appends rows to a file; opens a file that is there already at the end of its last whole line.

    InputError when the file was made from something else than `provenance`, with the first thing that differs.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self.done = done_ids(path, provenance)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        if whole < len(content):
            os.truncate(path, whole)
        if not whole:
            self._append(provenance.header())

    def write(self, rows: Iterable[Row]) -> None:
        self._append("".join(row.line() for row in rows))

    def close(self) -> None:
        self._file.close()

    def _append(self, text: str) -> None:
        """All of it in one system call, so that a kill leaves at most one line without an end."""
        data = text.encode()
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())


def done_ids(path: Path, provenance: Provenance) -> set[str]:
    """Ids of the traces that a file holds already; InputError when it was begun with another provenance."""
    if not path.exists() or b"\n" not in path.read_bytes():
        return set()
    old = read_reference(path)
    _check_same(old, provenance)
    return {row.id for row in old.rows}


def _check_same(old: Reference, new: Provenance) -> None:
    for f in fields(Provenance):
        before, now = getattr(old.provenance, f.name), getattr(new, f.name)
        if before != now:
            raise InputError(
                f"{old.place} was begun with {f.name} {before!r} and this run has {now!r}; "
                "finish it as it was begun, or choose another output"
            )
