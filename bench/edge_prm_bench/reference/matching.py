"""Data files, each with the references that were made from it: matched by the hash of the data, never by row ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_prm.errors import InputError
from edge_prm_bench.data import Data, read_data
from edge_prm_bench.reference.file import Reference
from edge_prm_bench.scoring import Judge, rewards_of_reference
from edge_prm_bench.statistics.coverage import Rewards, Scored


@dataclass(frozen=True)
class Reading:
    """How files are read: `limit` traces of each (None: as many as a reference holds, or else `default_limit`).

    `separators` are the step separators of the bundles, `fields` names of fields in place of the detected ones.
    """

    split: str = "auto"
    limit: int | None = None
    default_limit: int | None = None
    separators: tuple[str, ...] = ()
    fields: Any = None

    def read(self, path: Path) -> Data:
        """Read all traces of a file; InputError when none can be read."""
        more: dict[str, Any] = {"fields": self.fields} if self.fields is not None else {}
        if self.separators:
            more["separators"] = self.separators
        return read_data(path, split=self.split, **more)


@dataclass(frozen=True)
class File:
    """The part of a data file that is measured; `total` is the number of traces that the file has.

    `references` are those that were made from this very data, with their rewards.
    """

    data: Data
    total: int
    references: Mapping[Judge, Scored]


@dataclass(frozen=True)
class _Fit:
    judge: Judge
    reading: Reading
    rewards: Rewards


def read_file(path: Path, references: Sequence[Judge], reading: Reading, bad: dict[Judge, str]) -> list[File]:
    """Read a file once for each way of splitting that its references were made with; once where there are none.

    A reference of this file that is not complete is put into `bad`, with the reason.
    """
    known: dict[Reading, Data] = {reading: reading.read(path)}
    fits = []
    for judge in references:
        try:
            fits += _fit(path, judge, reading, known)
        except InputError as error:
            bad[judge] = str(error)
    files = []
    for used in dict.fromkeys(fit.reading for fit in fits) if fits else [reading]:
        complete, those = known[used], [fit for fit in fits if fit.reading == used]
        held = max((len(fit.rewards) for fit in those), default=reading.default_limit)
        data = complete.first(reading.limit if reading.limit is not None else held)
        scored = {fit.judge: rewards_of_reference(fit.judge, fit.rewards, data) for fit in those}
        files.append(File(data, len(complete.traces), scored))
    return files


def _fit(path: Path, judge: Judge, reading: Reading, known: dict[Reading, Data]) -> list[_Fit]:
    """How a reference was made from a file, with its rewards; nothing when it was made from another one.

    InputError when it was made from this file and is not complete.
    """
    assert judge.reference is not None, "bundles are run, not matched"
    made = judge.reference.provenance
    for way in dict.fromkeys((replace(reading, split=made.split), replace(reading, split=made.split, separators=()))):
        if way not in known:
            known[way] = way.read(path)
        part = known[way].first(made.traces)
        if len(part.traces) == made.traces and part.sha256 == made.data_sha256:
            return [_Fit(judge, way, judge.reference.rewards_for(part))]
    return []


def check_all_fit(
    references: Sequence[Judge], files: Sequence[File], bad: Mapping[Judge, str], paths: Sequence[Path]
) -> None:
    """InputError for a reference that was made from none of the files; one that is `bad` was made from one of them."""
    for judge in references:
        if judge not in bad and not any(judge in file.references for file in files):
            raise InputError(_does_not_fit(judge.reference, paths))


def _does_not_fit(reference: Reference | None, paths: Sequence[Path]) -> str:
    assert reference is not None, "only reference files are matched with data"
    made = reference.provenance
    return (
        f"{reference.place} was made from other data ({made.data}, {made.traces} traces) than "
        f"{', '.join(map(str, paths)) or 'none'}; give the file it was made from with --data, or make it again"
    )


def told_apart(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name for each path: its last part, or as many parts as it takes to distinguish it from the others."""
    parts = {path: path.resolve().parts for path in paths}
    names = {}
    for path, own in parts.items():
        others = [other for other in parts.values() if other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names[path] = "/".join(own[-length:])
    return names


def check_once(paths: Sequence[Path], what: str) -> None:
    """InputError when a path is given twice, in whatever spelling: the same numbers would count as two."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{what} {path} is given twice; give it once")
        seen.add(path.resolve())
