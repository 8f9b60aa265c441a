"""The whole benchmark: bundles, data and references in, one `Results` out. Every view is made from that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edge_prm
from edge_prm.errors import InputError
from edge_prm.manifest import Manifest, read_manifest
from edge_prm_bench import fidelity, latency, process, quality, scoring
from edge_prm_bench.data import Data
from edge_prm_bench.device import Throttling, describe_device, thermal_events
from edge_prm_bench.energy import Energy, EnergyMeter
from edge_prm_bench.gemm import int8_gemm_gops
from edge_prm_bench.results import BundleResult, Comparison, Options, Results, Speed
from edge_prm_bench.scoring import Judge

LIMIT = 64
"""Traces of a file that are scored when nothing else is said: a minute or two on a laptop."""
LIMIT_TOKENS = 512

_Scores = dict[tuple[Judge, str], fidelity.Scored]
"""By judge and by the hash of the data: two files can have one name."""


def run_suite(folders: Sequence[Path], options: Options, progress: Any) -> Results:
    """Measure every bundle. Raises InputError for data or references that do not fit, before any model work."""
    manifests = {folder: read_manifest(folder) for folder in folders}
    names = _names(folders)
    ours = [scoring.bundle_judge(folder, manifests[folder], names[folder], options.aggregate) for folder in folders]
    references = [scoring.reference_judge(path, options.aggregate) for path in options.references]
    _check_tokenizers(ours, references)
    limit = None if options.limit is None else options.limit or 10**9
    default = LIMIT if "fidelity" in options.parts else None
    files = scoring.read_files(options.data, references, limit, default, options.split)
    fit_on = scoring.read_files([options.fit], [], limit, None, options.split)[0] if options.fit else None
    if fit_on is not None and all(trace.first_wrong is None for trace in fit_on.traces):
        raise InputError(f"{options.fit} has no labels of wrong steps; a threshold cannot be fitted on it")
    _check_parts(options, files, references)
    results = Results(describe_device(), options.threads, peers=list(options.peers))
    if "latency" in options.parts:
        _measure_speed(results, ours, manifests, options, progress)
    else:
        results.bundles += [_bundle_result(judge, manifests[judge.source], None) for judge in ours]
    if files or fit_on:
        _judge(results, ours, references, files, fit_on, options, progress)
    return results


def _check_parts(options: Options, files: Sequence[Data], references: Sequence[Judge]) -> None:
    """Refuse a single part that would measure nothing."""
    labelled = any(
        trace.first_wrong is not None or trace.correct is not None for data in files for trace in data.traces
    )
    if options.parts == ("quality",) and not labelled:
        names = ", ".join(data.name for data in files)
        raise InputError(f"{names} has no labels to judge by" if files else "quality needs labelled rows; give --data")
    if options.parts == ("fidelity",) and files and not references:
        raise InputError("there is nothing to compare with; give --reference, a file of `edge-prm bench reference`")
    if references and not files:
        raise InputError("a reference was given and no data; give the file it was made from with --data")


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    names = {folder: folder.resolve().name for folder in folders}
    if len(set(names.values())) < len(names):
        return {folder: str(folder) for folder in folders}
    return names


def _check_tokenizers(ours: Sequence[Judge], references: Sequence[Judge]) -> None:
    """The same checkpoint with another tokenizer reads other tokens: no difference would mean anything."""
    for reference in references:
        for judge in ours:
            if judge.checkpoint == reference.checkpoint and judge.tokenizer != reference.tokenizer:
                raise InputError(
                    f"{reference.source} was made with another tokenizer.json than {judge.source} holds; make it anew "
                    "from the checkpoint as it is"
                )


def _measure_speed(
    results: Results, ours: Sequence[Judge], manifests: dict[Path, Manifest], options: Options, progress: Any
) -> None:
    events, threads = thermal_events(), options.threads
    results.gemm_gops = int8_gemm_gops(threads)
    for judge in ours:
        speed = _speed(judge, manifests[judge.source], options, results.gemm_gops, progress)
        results.bundles.append(_bundle_result(judge, manifests[judge.source], speed))
    now = thermal_events()
    new_events = now - events if now is not None and events is not None else None
    results.throttling = Throttling(results.gemm_gops, int8_gemm_gops(threads), new_events)


def _speed(judge: Judge, manifest: Manifest, options: Options, gops: float, progress: Any) -> Speed:
    folder, threads = judge.source, options.threads
    lengths = [length for length in options.lengths if length <= manifest.context_length]
    if not lengths:
        raise InputError(f"{folder} has a context of {manifest.context_length} tokens; ask for shorter --lengths")
    with progress(f"timing {judge.name}", len(lengths) + len(options.sweep) + 4) as advance:
        edge_prm.load(folder, threads=threads).close()  # hashes verified at the first use, not in what is timed
        load = process.measure_load(folder, threads)
        advance(1)
        with edge_prm.load(folder, threads=threads) as prm:
            prefill = []
            for length in lengths:
                prefill.append(latency.measure_prefill(prm, length, options.runs))
                advance(1)
            push, rank = latency.measure_pushes(prm), latency.measure_rank(prm)
            advance(2)
            near = min(prefill, key=lambda one: abs(one.tokens - LIMIT_TOKENS))
            energy = _energy(prm, near)
        peaks = {length: process.measure_peak_memory(folder, length, threads) for length in lengths if length >= 512}
        peaks = peaks or {lengths[-1]: process.measure_peak_memory(folder, lengths[-1], threads)}
        advance(1)
        sweep = {}
        for count in options.sweep:
            with edge_prm.load(folder, threads=count) as prm:
                sweep[count] = latency.measure_prefill(prm, near.tokens, 2).tokens_per_second
            advance(1)
    share = near.tokens_per_second * latency.gop_per_token(manifest) / gops
    return Speed(load, prefill, push, rank, peaks, sweep, share, energy, near.tokens)


def _energy(prm: edge_prm.PRM, near: latency.Prefill) -> Energy | None:
    """Energy of one text, averaged over two seconds of work at least."""
    meter = EnergyMeter()
    if not meter.available:
        return None
    runs = max(1, round(2 / near.timing.p50))
    with meter:
        for _ in range(runs):
            latency.measure_prefill(prm, near.tokens, runs=1)
    if meter.energy is None:
        return None
    done = runs * 2  # each has a warm-up
    return Energy(meter.energy.joules / done, meter.energy.seconds / done, meter.energy.source)


def _bundle_result(judge: Judge, manifest: Manifest, speed: Speed | None) -> BundleResult:
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e9
    recipe = manifest.recipe.name + (" reduced" if manifest.recipe.reduce_range else "")
    return BundleResult(judge.name, manifest.source.name, recipe, manifest.head.kind, size, manifest.fidelity, speed)


def _judge(
    results: Results,
    ours: Sequence[Judge],
    references: Sequence[Judge],
    files: Sequence[Data],
    fit_on: Data | None,
    options: Options,
    progress: Any,
) -> None:
    """Score the files with every judge once, then compare and measure."""
    scored: _Scores = {}
    everything = {data.sha256: data for data in (*files, *([fit_on] if fit_on else []))}
    for judge in (*ours, *references):
        if judge.source.is_file():
            for data in files:
                scored[judge, data.sha256] = judge.scored(scoring.rewards_of_file(judge, data))
            continue
        with edge_prm.load(judge.source, threads=options.threads) as prm:
            for data in everything.values():
                scored[judge, data.sha256] = judge.scored(scoring.rewards_of_bundle(prm, data, progress))
    for data in files:
        if "fidelity" in options.parts:
            _compare(results, data, ours, references, scored, options.threshold)
        if "quality" in options.parts:
            _measure_quality(results, data, [*ours, *references], scored, fit_on, options.threshold)


def _compare(
    results: Results,
    data: Data,
    ours: Sequence[Judge],
    references: Sequence[Judge],
    scored: _Scores,
    threshold: float,
) -> None:
    """Every bundle against every reference; references of one checkpoint against each other are the noise floor."""
    order = sorted(references, key=lambda judge: judge.precision not in scoring.FULL_PRECISION)
    for judge in ours:
        full = next((r for r in order if r.checkpoint == judge.checkpoint), None)
        for reference in references:
            pair = (scored[judge, data.sha256], scored[reference, data.sha256])
            if all(rewards is None for rewards in pair[1].rewards):
                continue
            if reference is full:
                results.quantization.append(fidelity.quantization(data, *pair, threshold))
                results.comparisons.append(Comparison(data, *pair, "quantization"))
            elif reference.checkpoint != judge.checkpoint:
                results.capability.append(fidelity.capability(data, *pair))
                results.comparisons.append(Comparison(data, *pair, "capability"))
    for index, left in enumerate(order):
        for right in order[index + 1 :]:
            if left.checkpoint == right.checkpoint:
                pair = (scored[right, data.sha256], scored[left, data.sha256])
                results.noise_floor.append(fidelity.quantization(data, *pair, threshold))


def _measure_quality(
    results: Results,
    data: Data,
    judges: Sequence[Judge],
    scored: _Scores,
    fit_on: Data | None,
    threshold: float,
) -> None:
    for judge in judges:
        one = scored[judge, data.sha256]
        limits = [(threshold, "")]
        if fit_on is not None and (judge, fit_on.sha256) in scored:
            limits = [(quality.fit_threshold(fit_on, scored[judge, fit_on.sha256].rewards), fit_on.name)]
        elif any(trace.first_wrong is not None for trace in data.traces):
            limits.append((quality.fit_threshold(data, one.rewards), data.name))
        for limit, fitted_on in limits:
            if (measured := quality.step_quality(data, one, limit, fitted_on)) is not None:
                results.step_quality.append(measured)
        if (chosen := quality.best_of_n(data, one)) is not None:
            results.best_of_n.append(chosen)
