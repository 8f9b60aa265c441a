"""What is to be measured on what. Everything that can be refused is refused here, before any model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edge_prm.errors import EdgePRMError, InputError
from edge_prm.manifest import read_manifest
from edge_prm_bench.reference.matching import File, Reading, check_all_match, check_once, read_file, short_names
from edge_prm_bench.results import Failure, Options
from edge_prm_bench.scorers import (
    BundleScorer,
    ReferenceScorer,
    Scorer,
    bundle_scorer,
    check_hashes,
    check_same_text,
    reference_scorer,
)
from edge_prm_bench.statistics.coverage import Scored

DEFAULT_TRACES = 64
"""Traces of a file that fidelity is measured on by default: a minute or two on a laptop."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Plan:
    """What is measured: `bundles`, with `references`, which are bundles in full precision, on `files`.

    `fit`: the file that the threshold of F1 is fitted on. `failures`: what was given and cannot be used.
    """

    bundles: tuple[BundleScorer, ...]
    references: tuple[BundleScorer, ...]
    files: tuple[File, ...]
    fit: File | None
    failures: tuple[Failure, ...]

    def scorers(self, file: File) -> list[Scorer]:
        """Everything that may have rewards for a file."""
        return [*self.bundles, *self.references, *file.references]


def make_plan(folders: Sequence[Path], options: Options) -> Plan:
    """Open bundles, references and data.

    One bad path of several is a failure, and the others are used. InputError for a reference without its data, and for
    a part that would measure nothing.
    """
    given = options.input
    for paths, what in ((folders, "bundle"), (given.references, "reference"), (given.data, "data file")):
        check_once(paths, what)
    bundles, failures = _open_bundles(folders, options)
    references, more = _open_each(
        given.references, lambda path: reference_scorer(path, options.scoring.aggregate), "reference"
    )
    check_same_text(bundles, references)
    if references:
        check_hashes([*bundles, *references])
    reading = _reading(options, [*bundles, *references])
    names = short_names(list(dict.fromkeys((*given.data, *([given.fit] if given.fit else [])))))
    stored = [scorer for scorer in references if isinstance(scorer, ReferenceScorer)]
    files, unusable = _read_files(options, stored, reading, names)
    fit = None if given.fit is None else _read_fit(given.fit, reading, names[given.fit])
    _check_parts(options, files, references)
    run = [scorer for scorer in references if isinstance(scorer, BundleScorer)]
    failures = [*failures, *more, *unusable]
    return _with_unique_names(Plan(tuple(bundles), tuple(run), tuple(files), fit, tuple(failures)))


def _open_each(paths: Sequence[Path], open_path: Callable[[Path], Item], what: str) -> tuple[list[Item], list[Failure]]:
    """What could be opened, and a failure for each other path; raises where nothing could be opened."""
    items: list[Item] = []
    failures: list[Failure] = []
    for path in paths:
        try:
            items.append(open_path(path))
        except EdgePRMError as error:
            if len(paths) == 1:
                raise
            failures.append(Failure(str(path), what, str(error)))
    if paths and not items:
        raise InputError(f"no {what} can be used: " + "; ".join(failure.reason for failure in failures))
    return items, failures


def _open_bundles(folders: Sequence[Path], options: Options) -> tuple[list[BundleScorer], list[Failure]]:
    names = short_names(folders)

    def open_bundle(folder: Path) -> BundleScorer:
        scorer = bundle_scorer(folder, read_manifest(folder), names[folder], options.scoring.aggregate)
        context = scorer.manifest.context_length
        if "latency" in options.parts and all(length > context for length in options.timed.lengths):
            raise InputError(f"{folder} has a context of {context} tokens; ask for shorter --lengths")
        return scorer

    return _open_each(folders, open_bundle, "bundle")


def _read_files(
    options: Options, references: Sequence[ReferenceScorer], reading: Reading, names: dict[Path, str]
) -> tuple[list[File], list[Failure]]:
    """The data files; an incomplete reference is a failure, or an InputError where there is no other reference."""

    def read(path: Path) -> tuple[list[File], dict[ReferenceScorer, str]]:
        found = read_file(path, references, reading)
        by_split = len(found.files) > 1
        renamed = [_named(f, names[path] + (f" (split {f.data.split})" if by_split else "")) for f in found.files]
        return renamed, dict(found.incomplete)

    opened, failures = _open_each(options.input.data, read, "data file")
    files = [file for found, _ in opened for file in found]
    incomplete = {scorer: reason for _, reasons in opened for scorer, reason in reasons.items()}
    if incomplete and len(incomplete) == len(options.input.references):
        raise InputError("; ".join(incomplete.values()))
    check_all_match(references, files, incomplete, options.input.data)
    return files, failures + [Failure(scorer.name, "reference", reason) for scorer, reason in incomplete.items()]


def _read_fit(path: Path, reading: Reading, name: str) -> File:
    (file,) = read_file(path, [], replace(reading, default_limit=None)).files
    if all(trace.first_wrong is None for trace in file.data.traces):
        raise InputError(f"{path} has no labels of wrong steps; a threshold cannot be fitted on it")
    return _named(file, name)


def _named(file: File, name: str) -> File:
    return replace(file, data=replace(file.data, name=name))


def _reading(options: Options, scorers: Sequence[Scorer]) -> Reading:
    inputs = [scorer.manifest.input for scorer in scorers if isinstance(scorer, BundleScorer)]
    limit = options.input.limit
    return Reading(
        split=options.input.split,
        limit=None if limit is None else limit or 10**9,
        default_limit=DEFAULT_TRACES if "fidelity" in options.parts else None,
        separators=tuple(dict.fromkeys(text for form in inputs if (text := form.separator_text))),
        fields=options.input.fields,
    )


def _check_parts(options: Options, files: Sequence[File], references: Sequence[Scorer]) -> None:
    """InputError for a single part that would measure nothing."""
    if options.parts == ("quality",):
        _check_labels(files)
    if options.parts == ("fidelity",) and not files:
        raise InputError("fidelity needs rows to score; give --data, and full precision to compare with by --reference")
    if options.parts == ("fidelity",) and not references:
        raise InputError("there is nothing to compare with; give --reference, a file of `edge-prm bench reference`")
    if references and not files:
        raise InputError("a reference was given and no data; give the file it was made from with --data")


def _check_labels(files: Sequence[File]) -> None:
    if not files:
        raise InputError("quality needs labelled rows; give --data")
    traces = [trace for file in files for trace in file.data.traces]
    if any(trace.first_wrong is not None or trace.correct is not None for trace in traces):
        return
    reasons = sorted({trace.unlabelled for trace in traces if trace.unlabelled})[:3]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise InputError(f"{', '.join(file.data.name for file in files)} has no labels to judge by{why}")


def _with_unique_names(plan: Plan) -> Plan:
    """The plan; a reference with the name of another column of the same file is named with its path."""
    ambiguous: set[Scorer] = set()
    for file in plan.files:
        names = Counter(scorer.name for scorer in plan.scorers(file))
        ambiguous |= {scorer for scorer in (*plan.references, *file.references) if names[scorer.name] > 1}
    bundles = tuple(_with_place(scorer) if scorer in ambiguous else scorer for scorer in plan.references)
    renamed = {scorer: _with_place(scorer) for file in plan.files for scorer in file.references if scorer in ambiguous}
    files = [replace(file, references=_renamed(file, renamed)) for file in plan.files]
    return replace(plan, references=bundles, files=tuple(files))


_AnyScorer = TypeVar("_AnyScorer", bound=Scorer)


def _with_place(scorer: _AnyScorer) -> _AnyScorer:
    return replace(scorer, name=f"{scorer.name} ({scorer.place})")


def _renamed(file: File, renamed: dict[ReferenceScorer, ReferenceScorer]) -> dict[ReferenceScorer, Scored]:
    pairs = ((renamed.get(scorer, scorer), scored) for scorer, scored in file.references.items())
    return {scorer: scored._replace(name=scorer.name) for scorer, scored in pairs}
