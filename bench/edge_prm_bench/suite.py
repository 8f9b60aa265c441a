"""The benchmark: bundles, data and references in, one `Results` out. Every view is made from that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_prm.errors import EdgePRMError
from edge_prm_bench import scoring
from edge_prm_bench.data import Data
from edge_prm_bench.engine import default_threads, device_of
from edge_prm_bench.plan import Plan, make_plan
from edge_prm_bench.results import BundleResult, Comparison, Failure, Options, Results, Speed
from edge_prm_bench.scoring import Judge
from edge_prm_bench.speed.device import Throttling, describe_device, thermal_events
from edge_prm_bench.speed.gemm import int8_gemm_gops
from edge_prm_bench.speed.measure import lengths_left_out, measure_speed
from edge_prm_bench.statistics import fidelity, quality
from edge_prm_bench.statistics.coverage import Omission, Scored, of_column, of_file, of_sharing, shared

_Scores = dict[tuple[Judge, str], Scored]
"""By judge and by the hash of the data: two files can have the same name."""
_MAY_FAIL = (EdgePRMError, OSError, MemoryError)
"""What ends one bundle and not the run."""


class _Run:
    """One run of the benchmark, while it goes on."""

    def __init__(self, plan: Plan, options: Options, progress: Any) -> None:
        self.plan, self.options, self.progress = plan, options, progress
        self.threads = options.engine.threads or default_threads()
        self.results = Results(describe_device(), self.threads, peers=list(options.peers))
        self.results.failures += plan.failures
        self.first_error: BaseException | None = None
        self.devices: dict[Judge, str] = {}

    def failed(self, name: str, part: str, error: BaseException) -> None:
        """Note what ended a bundle; the others go on."""
        self.first_error = self.first_error or error
        reason = str(error) or type(error).__name__
        self.results.failures.append(Failure(name, part, reason))


def run_suite(folders: Sequence[Path], options: Options, progress: Any) -> Results:
    """Measure every bundle.

    Raises InputError for data or references that do not fit, before any model work. A bundle that fails later is a
    failure in the results, and the others are measured; its error is raised only where nothing at all was measured.
    """
    plan = make_plan(folders, options)
    run = _Run(plan, options, progress)
    speeds = _measure_speed(run) if "latency" in options.parts else {}
    if plan.files or plan.fit:
        _judge(run)
    run.results.bundles += [_bundle_result(run, judge, speeds.get(judge)) for judge in plan.ours]
    if run.first_error is not None and not run.results.measured:
        raise run.first_error
    return run.results


def _measure_speed(run: _Run) -> dict[Judge, Speed]:
    events = thermal_events()
    gops = run.results.gemm_gops = int8_gemm_gops(run.threads)
    speeds = {}
    for judge in run.plan.ours:
        run.results.left_out += lengths_left_out(judge, run.options)
        try:
            speeds[judge], run.devices[judge] = measure_speed(judge, run.options, gops, run.progress)
        except _MAY_FAIL as error:
            run.failed(judge.name, "latency", error)
    now = thermal_events()
    new_events = now - events if now is not None and events is not None else None
    run.results.throttling = Throttling(gops, int8_gemm_gops(run.threads), new_events)
    return speeds


def _bundle_result(run: _Run, judge: Judge, speed: Speed | None) -> BundleResult:
    manifest = judge.manifest
    assert manifest is not None, "what is measured are bundles"
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e9
    return BundleResult(
        name=judge.name,
        source=manifest.source.name,
        recipe=manifest.recipe.name + (" reduced" if manifest.recipe.reduce_range else ""),
        head=manifest.head.kind,
        size_gb=size,
        golden=manifest.fidelity,
        speed=speed,
        device=run.devices.get(judge, ""),
    )


def _judge(run: _Run) -> None:
    """Score the files with every bundle once, then compare and measure."""
    plan, results = run.plan, run.results
    scored: _Scores = {
        (judge, file.data.sha256): rewards for file in plan.files for judge, rewards in file.references.items()
    }
    for judge in (*plan.ours, *plan.references):
        try:
            _score(run, judge, scored)
        except _MAY_FAIL as error:
            run.failed(judge.name, "scoring", error)
    labelled = "quality" in run.options.parts
    for file in [*plan.files, *([plan.fit] if plan.fit else [])]:
        results.left_out += of_file(file.data, file.total, labelled)
        if one_step := getattr(file.data, "one_step", 0):
            results.notes.append(
                f"{file.data.name}: {one_step} completions are read as one step each, and another --split gives more; "
                "`edge-prm rows` shows how a file is read"
            )
    for file in plan.files:
        columns = {j: scored[j, file.data.sha256] for j in plan.judges(file) if (j, file.data.sha256) in scored}
        for column in columns.values():
            results.left_out += of_column(file.data, column)
            if not column.indices:
                reason = f"{file.data.name}: no trace has a reward: {scoring.nothing_scored(column)}"
                results.failures.append(Failure(column.name, "scoring", reason))
        if "fidelity" in run.options.parts:
            _compare(run, file.data, columns)
        if labelled:
            _measure_quality(run, file.data, columns, scored)


def _score(run: _Run, judge: Judge, scored: _Scores) -> None:
    """Run a bundle over all files."""
    assert judge.manifest is not None, "reference files are not run"
    own = judge in run.plan.ours
    engine = run.options.engine if own else run.options.engine.for_reference(judge.manifest)
    everything = {file.data.sha256: file.data for file in run.plan.files}
    if run.plan.fit is not None:
        everything.setdefault(run.plan.fit.data.sha256, run.plan.fit.data)
    with engine.load(judge.source) as prm:
        run.devices[judge] = device_of(prm)
        for sha256, data in everything.items():
            scored[judge, sha256] = scoring.rewards_of_bundle(judge, prm, data, run.progress)


def _compare(run: _Run, data: Data, columns: dict[Judge, Scored]) -> None:
    """Every bundle against every reference; references of one checkpoint against each other are the noise floor.

    All rows of a table are computed on the traces that all of them have.
    """
    results, threshold = run.results, run.options.threshold
    ours = [judge for judge in run.plan.ours if judge in columns and columns[judge].indices]
    references = sorted(
        (judge for judge in columns if judge not in run.plan.ours and columns[judge].indices),
        key=lambda judge: judge.rounding,
    )
    if not references:
        reason = "fidelity: no reference was made from this file" if run.options.references else ""
        results.left_out += [Omission(data.name, "", len(data.traces), reason)] if reason else []
        return
    full = {judge: next((r for r in references if r.checkpoint == judge.checkpoint), None) for judge in ours}
    pairs = [(judge, best) for judge, best in full.items() if best is not None]
    floors = [
        (right, left)
        for index, left in enumerate(references)
        for right in references[index + 1 :]
        if left.checkpoint == right.checkpoint
    ]
    kept = _kept(run, data, columns, [*pairs, *floors], "fidelity")
    for judge, reference in pairs:
        ends = (columns[judge], columns[reference])
        results.quantization.append(fidelity.quantization(data, *ends, threshold, kept))
        results.comparisons.append(Comparison(data, ends[0].only(kept), ends[1].only(kept), "quantization"))
    for right, left in floors:
        results.noise_floor.append(fidelity.quantization(data, columns[right], columns[left], threshold, kept))
    pairs = [(judge, other) for judge in ours for other in references if other.checkpoint != judge.checkpoint]
    kept = _kept(run, data, columns, pairs, "agreement")
    for judge, reference in pairs:
        ends = (columns[judge], columns[reference])
        results.capability.append(fidelity.capability(data, *ends, kept))
        results.comparisons.append(Comparison(data, ends[0].only(kept), ends[1].only(kept), "capability"))


def _kept(
    run: _Run, data: Data, columns: dict[Judge, Scored], pairs: Sequence[tuple[Judge, Judge]], table: str
) -> frozenset[int]:
    """The traces of a table, and a note of what its columns have beyond them."""
    used = [columns[judge] for judge in dict.fromkeys(judge for pair in pairs for judge in pair)]
    kept = shared(used)
    run.results.left_out += of_sharing(data, used, kept, table)
    return kept


def _measure_quality(run: _Run, data: Data, columns: dict[Judge, Scored], scored: _Scores) -> None:
    """Every judge against labels, all on the traces that all of them have."""
    used = {judge: column for judge, column in columns.items() if column.indices}
    kept = shared(used.values())
    if any(trace.first_wrong is not None or trace.correct is not None for trace in data.traces):
        run.results.left_out += of_sharing(data, list(used.values()), kept, "quality")
    for judge, column in used.items():
        for threshold, fitted_on in _thresholds(run, data, judge, column.only(kept), scored):
            if (measured := quality.step_quality(data, column, threshold, fitted_on, kept)) is not None:
                run.results.step_quality.append(measured)
        if (chosen := quality.best_of_n(data, column, kept)) is not None:
            run.results.best_of_n.append(chosen)
            for count, reason in (
                (chosen.incomplete, "best of N: problems with a candidate without a label or a reward"),
                (chosen.small, f"best of N: problems with fewer than {chosen.n[-1]} candidates"),
            ):
                omission = Omission(data.name, "", count, reason)
                if count and omission not in run.results.left_out:
                    run.results.left_out.append(omission)


def _thresholds(run: _Run, data: Data, judge: Judge, column: Scored, scored: _Scores) -> list[tuple[float, str]]:
    """Thresholds of F1, each with the file that it was fitted on."""
    fit = run.plan.fit
    if fit is not None and (judge, fit.data.sha256) in scored:
        on_fit = [found for key, found in scored.items() if key[1] == fit.data.sha256 and found.indices]
        rewards = scored[judge, fit.data.sha256].only(shared(on_fit)).rewards
        return [(quality.fit_threshold(fit.data, rewards), fit.data.name)]
    limits = [(run.options.threshold, "")]
    if any(trace.first_wrong is not None for trace in data.traces):
        limits.append((quality.fit_threshold(data, column.rewards), data.name))
    return limits
