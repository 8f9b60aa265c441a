"""The table of speed and memory: a column for each bundle and for each other engine."""

from __future__ import annotations

from edge_prm_bench.peers import Peer
from edge_prm_bench.report.cells import UNKNOWN, Table, number, size, times
from edge_prm_bench.results import BundleResult, Results, Speed


def speed_table(results: Results) -> Table:
    """A column for each bundle and peer; a row that a column does not have is a dash."""
    columns = {b.name: _speed_column(b, b.speed) for b in results.bundles if b.speed is not None}
    if not columns:
        return Table("", (), ())
    for peer in results.peers:  # never over a bundle's own column
        columns[peer.name if peer.name not in columns else f"{peer.name} (peer)"] = _peer_column(peer)
    labels = sorted({label for column in columns.values() for label in column})
    rows = [(name, *(column.get((order, name), "–") for column in columns.values())) for order, name in labels]
    limit = f"The device's int8 GEMM runs at {results.gemm_gops:.0f} GOPS. " if results.gemm_gops else ""
    held = results.throttling.sentence if results.throttling else ""
    runs = "Prefill: the best run. Seconds: median [shortest, longest] of all runs. "
    return Table("Speed and memory", ("", *columns), tuple(rows), runs + limit + held)


_Label = tuple[tuple[int, int], str]
"""The place of a row, and what it is called."""


def _prefill_label(tokens: int) -> _Label:
    return (1, tokens), f"prefill of {tokens} tokens, tokens/s"


def _speed_column(bundle: BundleResult, speed: Speed) -> dict[_Label, str]:
    column: dict[_Label, str] = {((0, 0), "size"): size(bundle.size_gb), ((0, 1), "device"): bundle.device or "–"}
    column |= {_prefill_label(one.tokens): number(one.tokens_per_second, ".1f") for one in speed.prefill}
    if bundle.recipe.startswith("int8"):
        column[(2, 0), "share of the device's int8 limit"] = number(speed.share_of_limit, ".0%")
    for count, tokens_per_second in speed.threads_sweep.items():
        column[(3, count), f"tokens/s with {count} thread{'s' * (count != 1)}"] = number(tokens_per_second, ".1f")
    column[(4, 0), "load, files in memory, s"] = times(speed.load.warm)
    column[(4, 1), "load, files on disk, s"] = times(speed.load.cold)
    if speed.push is not None:
        column[(5, 0), "push of a step, s"] = times(speed.push.last, ".3f")
        column[(5, 1), "time of the last pushes over the first"] = number(speed.push.growth, ".2f")
    if speed.rank is not None:
        column[(6, 0), f"rank of {speed.rank.candidates}, shared prompt, s"] = times(speed.rank.shared)
        column[(6, 1), f"{speed.rank.candidates} candidates one by one, s"] = times(speed.rank.alone)
        column[(6, 2), "one by one over shared"] = times(speed.rank.faster)
        column[(6, 3), "tokens that rank computed / that it had to"] = f"{speed.rank.computed} / {speed.rank.needed}"
    for tokens, gigabytes in speed.peak_gb.items():
        column[(7, tokens), f"peak memory at {tokens} tokens, GB"] = (
            UNKNOWN if gigabytes is None else number(gigabytes, ".2f")
        )
    column[(8, 0), "energy per 1,000 tokens, J"] = _energy(speed)
    return column


def _peer_column(peer: Peer) -> dict[_Label, str]:
    column = {_prefill_label(tokens): number(speed, ".1f") for tokens, speed in peer.prefill.items()}
    if peer.size_gb is not None:
        column[(0, 0), "size"] = size(peer.size_gb)
    if peer.peak_gb is not None:
        column[(7, 0), "peak memory, GB"] = number(peer.peak_gb, ".2f")
    return column


def _energy(speed: Speed) -> str:
    if speed.energy is None:
        return UNKNOWN
    return f"{speed.energy.joules / speed.energy_tokens * 1000:.1f} ({speed.energy.watts:.1f} W)"
