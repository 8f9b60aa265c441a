"""The benchmark: bundles, data and references in, `Results` out. Every view is made from `Results`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edge_prm.errors import EdgePRMError
from edge_prm_bench import scoring
from edge_prm_bench.engine import default_threads, device_of
from edge_prm_bench.file_fidelity import FileFidelity, file_fidelity
from edge_prm_bench.file_quality import FileQuality, file_quality, fitted_thresholds
from edge_prm_bench.plan import Plan, make_plan
from edge_prm_bench.reference.matching import File
from edge_prm_bench.results import (
    BundleResult,
    Environment,
    Failure,
    FidelityResults,
    Options,
    QualityResults,
    Results,
    Speed,
)
from edge_prm_bench.scorers import BundleScorer, Scorer
from edge_prm_bench.speed.device import Throttling, describe_device, thermal_events
from edge_prm_bench.speed.gemm import Limits, int8_gemm_gops
from edge_prm_bench.speed.measure import lengths_over_context, measure_speed
from edge_prm_bench.speed.nvml import facts_of
from edge_prm_bench.statistics.coverage import Omission, Scored, of_column, of_file

_MAY_FAIL = (EdgePRMError, OSError, MemoryError)
"""Errors that end the work on one bundle; the others are measured."""


class _Failed(NamedTuple):
    failure: Failure
    error: BaseException


@dataclass
class _Speeds:
    """Speed by bundle, and what was measured of the device on the way."""

    of_bundle: dict[BundleScorer, Speed] = field(default_factory=dict)
    devices: dict[BundleScorer, str] = field(default_factory=dict)
    failed: list[_Failed] = field(default_factory=list)
    gemm_gops: float | None = None
    throttling: Throttling | None = None


@dataclass
class _Scores:
    """Rewards by scorer and by the hash of the data, because two files can have the same name."""

    columns: dict[tuple[Scorer, str], Scored] = field(default_factory=dict)
    devices: dict[BundleScorer, str] = field(default_factory=dict)
    failed: list[_Failed] = field(default_factory=list)

    def of(self, file: File, scorers: Sequence[Scorer]) -> dict[Scorer, Scored]:
        """The columns of a file, of those scorers that have one."""
        keys = [(scorer, file.data.sha256) for scorer in scorers]
        return {key[0]: self.columns[key] for key in keys if key in self.columns}


def run_suite(folders: Sequence[Path], options: Options, progress: Any) -> Results:
    """Measure every bundle.

    Raises InputError for data or references that do not match, before any model runs. A bundle that fails later is a
    failure in the results, and the others are measured; its error is raised only where nothing at all was measured.
    """
    plan = make_plan(folders, options)
    threads = options.engine.threads or default_threads()
    speeds = _measure_speeds(plan, options, threads, progress) if "latency" in options.parts else _Speeds()
    scores = _score_files(plan, options, progress) if plan.files or plan.fit else _Scores()
    columns = {file.data.sha256: scores.of(file, plan.scorers(file)) for file in plan.files}
    fidelity = _fidelity_of(plan, options, columns) if "fidelity" in options.parts else []
    quality = _quality_of(plan, options, columns, scores) if "quality" in options.parts else []
    failed = speeds.failed + scores.failed
    results = Results(
        environment=_environment(threads, speeds, scores),
        bundles=tuple(_bundle_result(scorer, speeds, scores) for scorer in plan.bundles),
        fidelity=FidelityResults.joined(part.results for part in fidelity),
        quality=QualityResults.joined(part.results for part in quality),
        baselines=options.peers,
        skipped=tuple(_skipped(plan, options, columns, [*fidelity, *quality])),
        failures=(*plan.failures, *(item.failure for item in failed), *_empty_columns(plan, columns)),
        notes=tuple(_notes(plan)),
    )
    if failed and not results.measured:
        raise failed[0].error
    return results


def _environment(threads: int, speeds: _Speeds, scores: _Scores) -> Environment:
    devices = sorted({*speeds.devices.values(), *scores.devices.values()})
    cards = {device: card for device in devices if (card := facts_of(device)) is not None}
    return Environment(describe_device(), threads, speeds.gemm_gops, speeds.throttling, cards)


def _measure_speeds(plan: Plan, options: Options, threads: int, progress: Any) -> _Speeds:
    """Time the bundles one after the other, and the processor's int8 GEMM before and after all of them."""
    events, gops = thermal_events(), int8_gemm_gops(threads)
    speeds, limits = _Speeds(gemm_gops=gops), Limits(gops)
    for scorer in plan.bundles:
        try:
            speeds.of_bundle[scorer], speeds.devices[scorer] = measure_speed(scorer, options, limits, progress)
        except _MAY_FAIL as error:
            speeds.failed.append(_failed(scorer, "latency", error))
    now = thermal_events()
    new_events = now - events if now is not None and events is not None else None
    speeds.throttling = Throttling(gops, int8_gemm_gops(threads), new_events)
    return speeds


def _score_files(plan: Plan, options: Options, progress: Any) -> _Scores:
    """Score every file with every bundle once; the rewards of reference files are known already."""
    scores = _Scores()
    for file in plan.files:
        for reference, column in file.references.items():
            scores.columns[reference, file.data.sha256] = column
    for scorer in (*plan.bundles, *plan.references):
        try:
            _score(scorer, plan, options, scores, progress)
        except _MAY_FAIL as error:
            scores.failed.append(_failed(scorer, "scoring", error))
    return scores


def _score(scorer: BundleScorer, plan: Plan, options: Options, scores: _Scores, progress: Any) -> None:
    """Add the columns of one bundle; those of its files that were scored before it fails stay."""
    engine = options.engine if scorer in plan.bundles else options.engine.for_reference(scorer.manifest)
    files = [*plan.files, *([plan.fit] if plan.fit else [])]
    with engine.load(scorer.place) as prm:
        scores.devices[scorer] = device_of(prm)
        for file in files:
            if (scorer, file.data.sha256) not in scores.columns:
                column = scoring.rewards_of_bundle(scorer, prm, file.data, progress)
                scores.columns[scorer, file.data.sha256] = column


def _failed(scorer: Scorer, part: str, error: BaseException) -> _Failed:
    return _Failed(Failure(scorer.name, part, str(error) or type(error).__name__), error)


_Columns = dict[str, dict[Scorer, Scored]]


def _fidelity_of(plan: Plan, options: Options, columns: _Columns) -> list[FileFidelity]:
    """Fidelity on each file, where there are references at all."""
    if not options.input.references:
        return []
    threshold = options.scoring.threshold
    return [file_fidelity(f.data, plan.bundles, columns[f.data.sha256], threshold) for f in plan.files]


def _quality_of(plan: Plan, options: Options, columns: _Columns, scores: _Scores) -> list[FileQuality]:
    """Quality on each file, at thresholds that are fitted on the file of `--fit` where there is one."""
    fitted = {}
    if plan.fit is not None:
        stored = [scorer for file in plan.files for scorer in file.references]
        fitted = fitted_thresholds(plan.fit.data, scores.of(plan.fit, [*plan.bundles, *plan.references, *stored]))
    threshold = options.scoring.threshold
    return [file_quality(f.data, columns[f.data.sha256], fitted, threshold) for f in plan.files]


def _bundle_result(scorer: BundleScorer, speeds: _Speeds, scores: _Scores) -> BundleResult:
    manifest = scorer.manifest
    return BundleResult(
        name=scorer.name,
        source=manifest.source.name,
        recipe=manifest.recipe.label,
        head=manifest.head.kind,
        size_gb=sum(entry.bytes for entry in manifest.files.values()) / 1e9,
        golden=manifest.fidelity,
        speed=speeds.of_bundle.get(scorer),
        device=scores.devices.get(scorer, speeds.devices.get(scorer, "")),
    )


def _skipped(
    plan: Plan, options: Options, columns: _Columns, parts: Sequence[FileFidelity | FileQuality]
) -> list[Omission]:
    """Everything that figures do not include, in the order of the work."""
    skipped = []
    if "latency" in options.parts:
        skipped += [omission for scorer in plan.bundles for omission in lengths_over_context(scorer, options.timed)]
    for file in [*plan.files, *([plan.fit] if plan.fit else [])]:
        skipped += of_file(file.data, file.total, "quality" in options.parts)
    for file in plan.files:
        for column in columns[file.data.sha256].values():
            skipped += of_column(file.data, column)
    return skipped + [omission for part in parts for omission in part.skipped]


def _empty_columns(plan: Plan, columns: _Columns) -> list[Failure]:
    """A failure for each bundle or reference that has no reward for a file."""
    return [
        Failure(
            column.name, "scoring",
            f"{file.data.name}: no trace has a reward: {scoring.most_frequent_reason(column)}",
        )
        for file in plan.files
        for column in columns[file.data.sha256].values()
        if not column.indices
    ]  # fmt: skip


def _notes(plan: Plan) -> list[str]:
    return [
        f"{file.data.name}: {file.data.one_step} completions are read as one step each, and another --split gives "
        "more; `edge-prm rows` shows how a file is read"
        for file in [*plan.files, *([plan.fit] if plan.fit else [])]
        if file.data.one_step
    ]
