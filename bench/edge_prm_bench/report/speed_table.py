"""The table of speed and memory: a column for each bundle and for each baseline."""

from __future__ import annotations

from edge_prm_bench.baselines import Baseline
from edge_prm_bench.report.cells import NONE, UNKNOWN, Table, number, plural, size, times
from edge_prm_bench.results import BundleResult, Results, Speed
from edge_prm_bench.speed.gemm import Limit

_Label = tuple[tuple[int, int], str]
"""The place of a row in the table, and its name."""
_Column = dict[_Label, str]


def speed_table(results: Results) -> Table:
    """Speed and memory; a row that a column does not have is a dash."""
    columns = {b.name: _speed_column(b, b.speed) for b in results.bundles if b.speed is not None}
    if not columns:
        return Table("", (), ())
    for baseline in results.baselines:  # never in the place of a bundle's own column
        name = baseline.name if baseline.name not in columns else f"{baseline.name} (peer)"
        columns[name] = _baseline_column(baseline)
    labels = sorted({label for column in columns.values() for label in column})
    rows = tuple((name, *(column.get((order, name), NONE) for column in columns.values())) for order, name in labels)
    environment = results.environment
    limit = "".join(f"The {of.kind} GEMM of {of.device} runs at {of.gops:.0f} GOPS. " for of in _limits(results))
    throttling = environment.throttling.sentence if environment.throttling else ""
    runs = "Prefill: the best run. Seconds: median [shortest, longest] of all runs. "
    return Table("Speed and memory", ("", *columns), rows, runs + limit + throttling)


def _limits(results: Results) -> list[Limit]:
    """The limits that shares are of, each once."""
    speeds = [bundle.speed for bundle in results.bundles if bundle.speed is not None]
    return list(dict.fromkeys(speed.fixed.limit for speed in speeds if speed.fixed.limit is not None))


def _prefill_label(tokens: int) -> _Label:
    return (1, tokens), f"prefill of {tokens} tokens, tokens/s"


def _speed_column(bundle: BundleResult, speed: Speed) -> _Column:
    column: _Column = {((0, 0), "size"): size(bundle.size_gb), ((0, 1), "device"): bundle.device or NONE}
    column |= {_prefill_label(each.tokens): number(each.tokens_per_second, ".1f") for each in speed.prefill}
    if speed.fixed.limit is not None:
        kind = speed.fixed.limit.kind
        column[(2, kind == "fp16"), f"share of the device's {kind} limit"] = number(speed.fixed.share_of_limit, ".0%")
    for threads, rate in speed.fixed.threads_sweep.items():
        column[(3, threads), f"tokens/s with {plural(threads, 'thread')}"] = number(rate, ".1f")
    column[(4, 0), "load, files in memory, s"] = times(speed.load.warm)
    column[(4, 1), "load, files on disk, s"] = times(speed.load.cold)
    column |= _session_rows(speed)
    for tokens, gigabytes in speed.peak_gb.items():
        shown = UNKNOWN if gigabytes is None else number(gigabytes, ".2f")
        column[(7, tokens), f"peak memory at {tokens} tokens, GB"] = shown
    for tokens, gigabytes in speed.device_gb.items():
        shown = UNKNOWN if gigabytes is None else number(gigabytes, ".2f")
        column[(8, tokens), f"memory of the GPU at {tokens} tokens, GB"] = shown
    column[(9, 0), "energy per 1,000 tokens, J"] = _energy(speed)
    return column


def _session_rows(speed: Speed) -> _Column:
    """Rows of pushes and ranking, where the context holds them."""
    rows: _Column = {}
    if (push := speed.push) is not None:
        rows[(5, 0), "push of a step, s"] = times(push.last, ".3f")
        rows[(5, 1), "time of the last pushes over the first"] = number(push.growth, ".2f")
    if (rank := speed.rank) is not None:
        rows[(6, 0), f"rank of {rank.candidates}, shared prompt, s"] = times(rank.shared)
        rows[(6, 1), f"{rank.candidates} candidates one by one, s"] = times(rank.alone)
        rows[(6, 2), "one by one over shared"] = times(rank.faster)
        rows[(6, 3), "tokens that rank computed / needed"] = f"{rank.computed} / {rank.needed}"
    return rows


def _baseline_column(baseline: Baseline) -> _Column:
    column = {_prefill_label(tokens): number(rate, ".1f") for tokens, rate in baseline.prefill.items()}
    if baseline.size_gb is not None:
        column[(0, 0), "size"] = size(baseline.size_gb)
    if baseline.peak_gb is not None:
        column[(7, 0), "peak memory, GB"] = number(baseline.peak_gb, ".2f")
    return column


def _energy(speed: Speed) -> str:
    energy = speed.fixed.energy
    if energy is None:
        return UNKNOWN
    return f"{energy.joules / speed.fixed.tokens * 1000:.1f} ({energy.watts:.1f} W)"
