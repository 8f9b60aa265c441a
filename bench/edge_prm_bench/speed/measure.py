"""Latency, memory and energy of one bundle, by the functions of `latency`, `process` and `energy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import edge_prm
from edge_prm.manifest import Manifest
from edge_prm_bench.engine import Engine, default_threads, device_of
from edge_prm_bench.results import FixedLength, Options, Speed, Timed
from edge_prm_bench.scorers import BundleScorer
from edge_prm_bench.speed import latency, process
from edge_prm_bench.speed.energy import Energy, meter_for
from edge_prm_bench.speed.gemm import Limit, Limits
from edge_prm_bench.statistics.coverage import Omission

FIXED_TOKENS = 512
"""Energy, threads and the share of the device's limit are measured at the length nearest to this."""
_ENERGY_SECONDS = 2  # at least so much work between two readings of a counter

_Advance = Callable[[int], object]


def measure_speed(scorer: BundleScorer, options: Options, limits: Limits, progress: Any) -> tuple[Speed, str]:
    """Measure one bundle; return its speed and the device that it ran on. `limits`: of matrix multiplication alone."""
    folder, engine, runs = scorer.place, options.engine, options.timed.runs
    lengths = lengths_in_context(scorer, options.timed)
    with progress(f"timing {scorer.name}", len(lengths) + len(options.timed.sweep) + 4) as advance:
        engine.load(folder).close()  # hashes are verified at the first use, not in what is timed
        load = process.measure_load(folder, engine, runs)
        advance(1)
        with engine.load(folder) as prm:
            device = device_of(prm)
            prefill = _prefill(prm, lengths, runs, advance)
            push, rank = latency.measure_pushes(prm), latency.measure_rank(prm, runs)
            advance(2)
            nearest = min(prefill, key=lambda measured: abs(measured.tokens - FIXED_TOKENS))
            energy = energy_of(prm, nearest)
        long = [length for length in lengths if length >= FIXED_TOKENS] or lengths[-1:]
        memory = {length: process.measure_peak_memory(folder, length, engine, device) for length in long}
        advance(1)
        sweep = _sweep(scorer, options, nearest.tokens, advance)
    limit = limits.of(scorer.manifest.recipe, device, engine.threads or default_threads())
    share = share_of(limit, nearest, scorer.manifest)
    fixed = FixedLength(nearest.tokens, nearest.tokens_per_second, share, sweep, energy, limit)
    peaks = {length: taken.peak_gb for length, taken in memory.items()}
    device_gb = {} if device == "cpu" else {length: taken.device_gb for length, taken in memory.items()}
    return Speed(load, tuple(prefill), push, rank, peaks, fixed, device_gb), device


def share_of(limit: Limit | None, prefill: latency.Prefill, manifest: Manifest) -> float | None:
    """The share of a limit that a text's linear layers reached; None without a limit."""
    return None if limit is None else prefill.tokens_per_second * latency.gop_per_token(manifest) / limit.gops


def lengths_in_context(scorer: BundleScorer, timed: Timed) -> list[int]:
    """The lengths, in tokens, that the bundle's context holds."""
    return [length for length in dict.fromkeys(timed.lengths) if length <= scorer.manifest.context_length]


def lengths_over_context(scorer: BundleScorer, timed: Timed) -> list[Omission]:
    """An omission that names the other lengths."""
    held = lengths_in_context(scorer, timed)
    reason = f"lengths over the context of {scorer.manifest.context_length:,} tokens"
    longer = [f"{length:,} tokens" for length in dict.fromkeys(timed.lengths) if length not in held]
    return [Omission("", scorer.name, len(longer), reason, tuple(longer[:3]))] if longer else []


def _prefill(prm: edge_prm.PRM, lengths: Sequence[int], runs: int, advance: _Advance) -> list[latency.Prefill]:
    measured = []
    for length in lengths:
        measured.append(latency.measure_prefill(prm, length, runs))
        advance(1)
    return measured


def _sweep(scorer: BundleScorer, options: Options, tokens: int, advance: _Advance) -> dict[int, float]:
    """Tokens/s by number of threads."""
    rates = {}
    for threads in options.timed.sweep:
        engine: Engine = replace(options.engine, threads=threads)
        with engine.load(scorer.place) as prm:
            rates[threads] = latency.measure_prefill(prm, tokens, options.timed.runs).tokens_per_second
        advance(1)
    return rates


def energy_of(prm: edge_prm.PRM, nearest: latency.Prefill) -> Energy | None:
    """Energy of one text, the mean over at least two seconds of work; None where the device measures none."""
    meter = meter_for(device_of(prm))
    if not meter.available:
        return None
    runs = max(1, round(_ENERGY_SECONDS / nearest.timing.p50))
    run = latency.prefill_run(prm, nearest.tokens)
    run()
    with meter:
        for _ in range(runs):
            run()
    if meter.energy is None:
        return None
    return Energy(meter.energy.joules / runs, meter.energy.seconds / runs, meter.energy.source)
