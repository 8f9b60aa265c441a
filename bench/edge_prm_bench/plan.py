"""What is to be measured on what: everything that can be refused is refused here, before any model work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edge_prm.errors import EdgePRMError, InputError
from edge_prm.manifest import read_manifest
from edge_prm_bench import scoring
from edge_prm_bench.reference.matching import File, Reading, check_all_fit, check_once, read_file, told_apart
from edge_prm_bench.results import Failure, Options
from edge_prm_bench.scoring import Judge

LIMIT = 64
"""Traces of a file that fidelity is measured on when nothing else is said: a minute or two on a laptop."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Plan:
    """Bundles and reference bundles to be run, files with their references, and what was given and cannot be used."""

    ours: tuple[Judge, ...]
    references: tuple[Judge, ...]
    files: tuple[File, ...]
    fit: File | None
    failures: tuple[Failure, ...]

    def judges(self, file: File) -> list[Judge]:
        """Everything that may have rewards for a file."""
        return [*self.ours, *self.references, *file.references]


def make_plan(folders: Sequence[Path], options: Options) -> Plan:
    """Open bundles, references and data. One of several that is bad costs only itself; a reference without its data is
    an error, as is a part that would measure nothing.
    """
    check_once(folders, "bundle")
    check_once(options.references, "reference")
    check_once(options.data, "data file")
    failures: list[Failure] = []
    names = told_apart(folders)

    def ours_of(folder: Path) -> Judge:
        judge = scoring.bundle_judge(folder, read_manifest(folder), names[folder], options.aggregate)
        _check_lengths(judge, options)
        return judge

    ours = _each(folders, ours_of, "bundle", failures)
    given = _each(options.references, lambda p: scoring.reference_judge(p, options.aggregate), "reference", failures)
    scoring.check_same_text(ours, given)
    if given:
        scoring.check_hashes([*ours, *given])
    reading = _reading(options, [*ours, *given])
    made = [judge for judge in given if judge.reference is not None]
    data_names = told_apart(list(dict.fromkeys((*options.data, *([options.fit] if options.fit else [])))))
    files = _read_files(options, made, reading, data_names, failures)
    fit = None
    if options.fit is not None:
        fit = _named(read_file(options.fit, [], replace(reading, default_limit=None), {})[0], data_names[options.fit])
        if all(trace.first_wrong is None for trace in fit.data.traces):
            raise InputError(f"{options.fit} has no labels of wrong steps; a threshold cannot be fitted on it")
    _check_parts(options, files, given)
    bundles = [judge for judge in given if judge.reference is None]
    return _with_own_names(Plan(tuple(ours), tuple(bundles), tuple(files), fit, tuple(failures)))


def _each(paths: Sequence[Path], make: Callable[[Path], Item], what: str, failures: list[Failure]) -> list[Item]:
    """What is made of each path; the only path must be good, a bad one of several is a failure."""
    made = []
    for path in paths:
        try:
            made.append(make(path))
        except EdgePRMError as error:
            if len(paths) == 1:
                raise
            failures.append(Failure(str(path), what, str(error)))
    if paths and not made:
        raise InputError(f"no {what} can be used: " + "; ".join(f.reason for f in failures if f.part == what))
    return made


def _read_files(
    options: Options, references: Sequence[Judge], reading: Reading, names: dict[Path, str], failures: list[Failure]
) -> list[File]:
    """The data files; a reference that is not complete is left out, unless it is the only one."""
    bad: dict[Judge, str] = {}

    def read(path: Path) -> list[File]:
        files = read_file(path, references, reading, bad)
        split = len(files) > 1
        return [_named(f, names[path] + (f" (split {f.data.split})" if split else "")) for f in files]

    files = [file for found in _each(options.data, read, "data file", failures) for file in found]
    if bad and len(bad) == len(options.references):
        raise InputError("; ".join(bad.values()))
    failures += [Failure(judge.name, "reference", reason) for judge, reason in bad.items()]
    check_all_fit(references, files, bad, options.data)
    return files


def _named(file: File, name: str) -> File:
    return replace(file, data=replace(file.data, name=name))


def _reading(options: Options, judges: Sequence[Judge]) -> Reading:
    separators = [getattr(judge.manifest.input, "separator_text", None) for judge in judges if judge.manifest]
    return Reading(
        split=options.split,
        limit=None if options.limit is None else options.limit or 10**9,
        default_limit=LIMIT if "fidelity" in options.parts else None,
        separators=tuple(dict.fromkeys(separator for separator in separators if separator)),
        fields=options.fields,
    )


def _check_lengths(judge: Judge, options: Options) -> None:
    if "latency" not in options.parts or judge.manifest is None:
        return
    context = judge.manifest.context_length
    if all(length > context for length in options.lengths):
        raise InputError(f"{judge.source} has a context of {context} tokens; ask for shorter --lengths")


def _check_parts(options: Options, files: Sequence[File], references: Sequence[Judge]) -> None:
    """InputError for a single part that would measure nothing."""
    traces = [trace for file in files for trace in file.data.traces]
    labelled = any(trace.first_wrong is not None or trace.correct is not None for trace in traces)
    if options.parts == ("quality",) and not labelled:
        names = ", ".join(file.data.name for file in files)
        why = {why for trace in traces if (why := getattr(trace, "unlabelled", ""))}
        reasons = f" ({'; '.join(sorted(why)[:3])})" if why else ""
        raise InputError(
            f"{names} has no labels to judge by{reasons}" if files else "quality needs labelled rows; give --data"
        )
    if options.parts == ("fidelity",) and not files:
        raise InputError("fidelity needs rows to score; give --data, and full precision to compare with by --reference")
    if options.parts == ("fidelity",) and not references:
        raise InputError("there is nothing to compare with; give --reference, a file of `edge-prm bench reference`")
    if references and not files:
        raise InputError("a reference was given and no data; give the file it was made from with --data")


def _with_own_names(plan: Plan) -> Plan:
    """References whose names another column of the same file has are named with their place."""
    twice: set[Judge] = set()
    for file in plan.files:
        names = Counter(judge.name for judge in plan.judges(file))
        twice |= {judge for judge in (*plan.references, *file.references) if names[judge.name] > 1}
    if not twice:
        return plan
    renamed = {judge: replace(judge, name=f"{judge.name} ({judge.source})") for judge in twice}
    files = [
        replace(
            file,
            references={
                renamed.get(judge, judge): scored._replace(name=renamed.get(judge, judge).name)
                for judge, scored in file.references.items()
            },
        )
        for file in plan.files
    ]
    return replace(plan, references=tuple(renamed.get(j, j) for j in plan.references), files=tuple(files))
