"""Results -> tables of text: one form for the terminal, Markdown and the HTML report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_prm_bench.fidelity import Capability, Quantization
from edge_prm_bench.metrics import Estimate
from edge_prm_bench.peers import Peer
from edge_prm_bench.quality import BestOfN, StepQuality
from edge_prm_bench.results import BundleResult, Results, Speed

UNKNOWN = "not available"


@dataclass(frozen=True)
class Table:
    """`note` says how to read it."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(results: Results) -> list[Table]:
    """The tables that have something to say."""
    made = (
        _speed(results),
        _golden(results),
        _quantization(results),
        _capability(results),
        _steps(results),
        _best_of_n(results),
    )
    return [table for table in made if table.rows]


def as_text(table: Table) -> str:
    return _render(table, "simple")


def as_markdown(table: Table) -> str:
    return _render(table, "github")


def markdown(results: Results) -> str:
    """All tables with titles and notes, and what they were measured on: to be pasted into a README."""
    parts = [hardware(results)]
    for table in tables(results):
        parts.append(f"**{table.title}**" + (f". {table.note}" if table.note else ""))
        parts.append(as_markdown(table))
    return "\n\n".join(parts) + "\n"


def hardware(results: Results) -> str:
    """One line: device, threads, versions."""
    device = results.device
    versions = ", ".join(f"{name} {number}" for name, number in device.versions.items())
    threads = results.threads or device.cores
    memory = f", {device.memory_gb:g} GB" if device.memory_gb else ""
    power = f", power mode {device.power_mode}" if device.power_mode else ""
    governor = f", governor {device.governor}" if device.governor else ""
    instructions = f" ({device.instructions})" if device.instructions else ""
    return (
        f"{device.processor}{instructions}, {device.cores} cores{memory}{power}{governor}; {device.system}; "
        f"{threads} threads; {versions}"
    )


def size(gigabytes: float) -> str:
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{gigabytes * 1000:.1f} MB"


def number(value: float | None, form: str = ".4f") -> str:
    """A value as a table shows it: NaN and None are no numbers, and what is not zero is not shown as zero."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1e}" if form == ".4f" and 0 < abs(value) < 5e-5 else format(value, form)


def estimate(value: Estimate, form: str = ".4f") -> str:
    """A value with its 95% interval."""
    if math.isnan(value.value) or math.isnan(value.low):
        return number(value.value, form)
    return f"{number(value.value, form)} [{number(value.low, form)}, {number(value.high, form)}]"


def _render(table: Table, form: str) -> str:
    from tabulate import tabulate

    return tabulate(table.rows, table.headers, tablefmt=form, disable_numparse=True)


def _speed(results: Results) -> Table:
    """One column for each bundle and peer; a row that a column does not have is a dash."""
    columns = {b.name: _speed_column(b, b.speed) for b in results.bundles if b.speed is not None}
    if not columns:
        return Table("", (), ())
    columns |= {peer.name: _peer_column(peer) for peer in results.peers}
    labels = sorted({label for column in columns.values() for label in column})
    rows = [(name, *(column.get((order, name), "–") for column in columns.values())) for order, name in labels]
    limit = f"The device's int8 GEMM runs at {results.gemm_gops:.0f} GOPS. " if results.gemm_gops else ""
    held = results.throttling.sentence if results.throttling else ""
    return Table("Speed and memory", ("", *columns), tuple(rows), limit + held)


_Label = tuple[tuple[int, int], str]
"""Where a row stands, and what it is called."""


def _prefill_label(tokens: int) -> _Label:
    return (1, tokens), f"prefill of {tokens} tokens, tokens/s"


def _speed_column(bundle: BundleResult, speed: Speed) -> dict[_Label, str]:
    column: dict[_Label, str] = {((0, 0), "size"): size(bundle.size_gb)}
    column |= {_prefill_label(one.tokens): number(one.tokens_per_second, ".1f") for one in speed.prefill}
    if bundle.recipe.startswith("int8"):
        column[(2, 0), "share of the device's int8 limit"] = number(speed.share_of_limit, ".0%")
    for count, tokens_per_second in speed.threads_sweep.items():
        column[(3, count), f"tokens/s with {count} thread{'s' * (count != 1)}"] = number(tokens_per_second, ".1f")
    column[(4, 0), "load, warm / cold, s"] = f"{speed.load.warm:.2f} / {number(speed.load.cold, '.2f')}"
    if speed.push is not None:
        column[(5, 0), "push of a step, p50 / p95, s"] = f"{speed.push.last.p50:.3f} / {speed.push.last.p95:.3f}"
        column[(5, 1), "time of the last push over the second"] = number(speed.push.growth, ".2f")
    if speed.rank is not None:
        label = f"rank of {speed.rank.candidates}, shared prompt / one by one, s"
        column[(6, 0), label] = f"{speed.rank.shared.p50:.2f} / {speed.rank.alone.p50:.2f}"
    for tokens, gigabytes in speed.peak_gb.items():
        column[(7, tokens), f"peak memory at {tokens} tokens, GB"] = number(gigabytes, ".2f")
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


def _golden(results: Results) -> Table:
    rows = tuple(
        (b.name, str(g.rewards), number(g.mean_difference), number(g.max_difference), g.reference)
        for b in results.bundles
        if (g := b.golden) is not None
    )
    return Table(
        "Golden trajectories",
        ("bundle", "rewards", "mean difference", "largest", "against"),
        rows,
        "Measured at export, and carried by every bundle; `edge-prm check` repeats it on this device.",
    )


def _quantization(results: Results) -> Table:
    def row(one: Quantization, label: str) -> tuple[str, ...]:
        return (
            label, one.reference, one.data, f"{one.traces} ({one.rewards})", estimate(one.mean), estimate(one.p99),
            number(one.maximum), estimate(one.spearman, ".3f"), estimate(one.kendall, ".3f"),
            estimate(one.flips, ".1%"), estimate(one.first_weak, ".1%"), estimate(one.best, ".1%"),
        )  # fmt: skip

    def of_peer(one: Peer) -> tuple[str, ...]:
        known = (number(one.mean), number(one.p99), "–", number(one.spearman, ".3f"))
        return one.name, "as its file says", "–", "–", *known, *("–",) * 4

    rows = [row(one, one.ours) for one in results.quantization]
    if rows:
        rows += [row(one, f"noise floor: {one.ours}") for one in results.noise_floor]
        rows += [of_peer(peer) for peer in results.peers if peer.mean is not None]
    headers = (
        "rewards of", "against", "data", "traces (rewards)", "mean difference", "99%", "largest", "Spearman", "Kendall",
        "verdicts that flip", "same first weak step", "same best of N",
    )  # fmt: skip
    note = "Quantization: one checkpoint, run in two ways. In brackets: 95% of 1,000 bootstrap samples of the problems."
    return Table("Fidelity to full precision", headers, tuple(rows), note)


def _capability(results: Results) -> Table:
    def row(one: Capability) -> tuple[str, ...]:
        return (
            one.ours, one.reference, one.data, str(one.traces), estimate(one.spearman, ".3f"),
            estimate(one.kendall, ".3f"), estimate(one.steps, ".3f"), estimate(one.order, ".1%"),
            estimate(one.best, ".1%"),
        )  # fmt: skip

    headers = (
        "rewards of", "against", "data", "traces", "Spearman", "Kendall", "Spearman of steps", "same order of pairs",
        "same best of N",
    )  # fmt: skip
    note = "Capability: another model. This is what the small model cannot do, whatever its precision."
    return Table("Agreement with the reference model", headers, tuple(row(one) for one in results.capability), note)


def _steps(results: Results) -> Table:
    def row(one: StepQuality) -> tuple[str, ...]:
        return (
            one.name, one.data, f"{one.traces} ({one.erroneous} wrong)", _threshold(one), estimate(one.f1, ".1%"),
            number(one.accuracy_erroneous, ".1%"), number(one.accuracy_correct, ".1%"), estimate(one.step_auc, ".3f"),
        )  # fmt: skip

    headers = (
        "judge", "data", "rows", "threshold", "F1", "found the first wrong step", "passed what is right", "step AUC",
    )  # fmt: skip
    note = "F1 as ProcessBench defines it; fitted on the very file, it is what the judge could reach."
    return Table("Quality: finding the first wrong step", headers, tuple(map(row, results.step_quality)), note)


def _threshold(one: StepQuality) -> str:
    if not one.fitted_on:
        return f"{one.threshold:.3f}"
    return f"{one.threshold:.3f}, fitted on {'this very file' if one.fitted_on == one.data else one.fitted_on}"


def _best_of_n(results: Results) -> Table:
    def row(one: BestOfN, index: int) -> tuple[str, ...]:
        return (
            one.name, one.data, str(one.problems), str(one.n[index]), estimate(one.chosen_interval[index], ".1%"),
            number(one.majority[index], ".1%"), number(one.random[index], ".1%"), number(one.oracle[index], ".1%"),
        )  # fmt: skip

    rows = tuple(row(one, index) for one in results.best_of_n for index in range(len(one.n)))
    headers = ("judge", "data", "problems", "N", "judge's choice", "majority vote", "random", "oracle")
    return Table("Quality: best of N", headers, rows, " ".join(one.verdict for one in results.best_of_n))
