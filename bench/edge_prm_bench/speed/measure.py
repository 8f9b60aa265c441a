"""Latency, memory and energy of one bundle, each by the functions of `latency` and `process`."""

from __future__ import annotations

from typing import Any

import edge_prm
from edge_prm.manifest import Manifest
from edge_prm_bench.engine import Engine, device_of
from edge_prm_bench.results import Options, Speed
from edge_prm_bench.scoring import Judge
from edge_prm_bench.speed import latency, process
from edge_prm_bench.speed.energy import Energy, EnergyMeter
from edge_prm_bench.statistics.coverage import Omission

NEAR_TOKENS = 512
"""Energy, threads and the share of the device's limit are measured at the length nearest to this."""


def measure_speed(judge: Judge, options: Options, gops: float, progress: Any) -> tuple[Speed, str]:
    """Measure one bundle; return its speed and the device that it ran on."""
    assert judge.manifest is not None, "only bundles are timed"
    folder, engine, runs = judge.source, options.engine, options.runs
    lengths = lengths_of(judge.manifest, options)
    with progress(f"timing {judge.name}", len(lengths) + len(options.sweep) + 4) as advance:
        engine.load(folder).close()  # hashes verified at the first use, not in what is timed
        load = process.measure_load(folder, engine, runs)
        advance(1)
        with engine.load(folder) as prm:
            device = device_of(prm)
            prefill = []
            for length in lengths:
                prefill.append(latency.measure_prefill(prm, length, runs))
                advance(1)
            push, rank = latency.measure_pushes(prm), latency.measure_rank(prm, runs)
            advance(2)
            near = min(prefill, key=lambda one: abs(one.tokens - NEAR_TOKENS))
            energy = _energy(prm, near)
        long = [length for length in lengths if length >= NEAR_TOKENS] or lengths[-1:]
        peaks = {length: process.measure_peak_memory(folder, length, engine) for length in long}
        advance(1)
        sweep = {}
        for count in options.sweep:
            with Engine(count, engine.device, engine.gpu_layers).load(folder) as prm:
                sweep[count] = latency.measure_prefill(prm, near.tokens, runs).tokens_per_second
            advance(1)
    share = near.tokens_per_second * latency.gop_per_token(judge.manifest) / gops
    return Speed(load, prefill, push, rank, peaks, sweep, share, energy, near.tokens), device


def lengths_of(manifest: Manifest, options: Options) -> list[int]:
    """The lengths that a bundle's context holds."""
    return [length for length in dict.fromkeys(options.lengths) if length <= manifest.context_length]


def lengths_left_out(judge: Judge, options: Options) -> list[Omission]:
    """The lengths that it does not hold."""
    assert judge.manifest is not None, "only bundles are timed"
    held = lengths_of(judge.manifest, options)
    reason = f"lengths over the context of {judge.manifest.context_length:,} tokens"
    left = [f"{length:,} tokens" for length in dict.fromkeys(options.lengths) if length not in held]
    return [Omission("", judge.name, len(left), reason, tuple(left[:3]))] if left else []


def _energy(prm: edge_prm.PRM, near: latency.Prefill) -> Energy | None:
    """Energy of one text, averaged over two seconds of work at least."""
    meter = EnergyMeter()
    if not meter.available:
        return None
    runs = max(1, round(2 / near.timing.p50))
    run = latency.prefill_run(prm, near.tokens)
    run()
    with meter:
        for _ in range(runs):
            run()
    if meter.energy is None:
        return None
    return Energy(meter.energy.joules / runs, meter.energy.seconds / runs, meter.energy.source)
