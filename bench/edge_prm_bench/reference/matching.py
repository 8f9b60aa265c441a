"""Data files, each with the references that were made from it: matched by the hash of the data, never by row ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_prm.errors import InputError
from edge_prm.records import Fields
from edge_prm_bench.data import Data, read_data
from edge_prm_bench.scorers import ReferenceScorer
from edge_prm_bench.scoring import rewards_of_reference
from edge_prm_bench.statistics.coverage import Rewards, Scored


@dataclass(frozen=True)
class Reading:
    """How files are read: `limit` traces of each (None: as many as a reference has, or else `default_limit`).

    `separators` are the step separators of the bundles, `fields` names of fields in place of the detected ones.
    """

    split: str = "auto"
    limit: int | None = None
    default_limit: int | None = None
    separators: tuple[str, ...] = ()
    fields: Fields | None = None

    def read(self, path: Path) -> Data:
        """Read all traces of a file; InputError when none can be read."""
        return read_data(path, split=self.split, fields=self.fields, separators=self.separators)


@dataclass(frozen=True)
class File:
    """The part of a data file that is measured; `total` is the number of traces of the complete file.

    `references` are those that were made from these traces, with their rewards.
    """

    data: Data
    total: int
    references: Mapping[ReferenceScorer, Scored] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadFile:
    """A file, read once for each way of splitting that its references use; `incomplete`: references of it that are not
    complete, with the reason."""

    files: tuple[File, ...]
    incomplete: Mapping[ReferenceScorer, str]


@dataclass(frozen=True)
class _Match:
    """A reference that was made from a file, how the file was read for it, and its rewards."""

    scorer: ReferenceScorer
    reading: Reading
    rewards: Rewards


def read_file(path: Path, references: Sequence[ReferenceScorer], reading: Reading) -> ReadFile:
    """Read a file in the ways that its references were made with, or else once."""
    known: dict[Reading, Data] = {reading: reading.read(path)}
    matches: list[_Match] = []
    incomplete: dict[ReferenceScorer, str] = {}
    for scorer in references:
        try:
            matches += _match(path, scorer, reading, known)
        except InputError as error:
            incomplete[scorer] = str(error)
    ways = list(dict.fromkeys(match.reading for match in matches)) or [reading]
    files = (_file(known[way], [match for match in matches if match.reading == way], reading) for way in ways)
    return ReadFile(tuple(files), incomplete)


def _file(complete: Data, matches: Sequence[_Match], reading: Reading) -> File:
    held = max((len(match.rewards) for match in matches), default=reading.default_limit)
    data = complete.first(reading.limit if reading.limit is not None else held)
    scored = {match.scorer: rewards_of_reference(match.scorer, match.rewards, data) for match in matches}
    return File(data, len(complete.traces), scored)


def _match(path: Path, scorer: ReferenceScorer, reading: Reading, known: dict[Reading, Data]) -> list[_Match]:
    """How a reference was made from a file, with its rewards; nothing when it was made from another file.

    What is read is added to `known`. InputError when it was made from this file and is not complete.
    """
    made_from = scorer.reference.provenance.data
    split = replace(reading, split=made_from.split)
    for way in dict.fromkeys((split, replace(split, separators=()))):
        if way not in known:
            known[way] = way.read(path)
        part = known[way].first(made_from.traces)
        if len(part.traces) == made_from.traces and part.sha256 == made_from.sha256:
            return [_Match(scorer, way, scorer.reference.rewards_for(part))]
    return []


def check_all_match(
    references: Sequence[ReferenceScorer], files: Sequence[File], incomplete: Collection[ReferenceScorer],
    paths: Sequence[Path],
) -> None:  # fmt: skip
    """InputError for a reference that was made from none of the files, which were read from `paths`."""
    for scorer in references:
        if scorer not in incomplete and not any(scorer in file.references for file in files):
            made_from = scorer.reference.provenance.data
            raise InputError(
                f"{scorer.place} was made from other data ({made_from.name}, {made_from.traces} traces) than "
                f"{', '.join(map(str, paths)) or 'none'}; give the file it was made from with --data, or make it again"
            )


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name for each path: its last part, or as many last parts as no other path ends with."""
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
    """InputError when a path is given twice, in any spelling: its figures would count twice."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{what} {path} is given twice; give it once")
        seen.add(path.resolve())
