"""Results -> tables of text: one form for the terminal, Markdown and the HTML report."""

from __future__ import annotations

from edge_prm.errors import MissingExtraError
from edge_prm_bench.engine import default_threads
from edge_prm_bench.peers import Peer
from edge_prm_bench.report.cells import Table, estimate, number, short
from edge_prm_bench.report.speed_table import speed_table
from edge_prm_bench.results import Results
from edge_prm_bench.statistics.coverage import Omission
from edge_prm_bench.statistics.fidelity import Capability, Quantization
from edge_prm_bench.statistics.quality import BestOfN, StepQuality


def tables(results: Results) -> list[Table]:
    """The tables that have something to say."""
    made = (
        speed_table(results),
        _golden(results),
        _quantization(results),
        _capability(results),
        _steps(results),
        _best_of_n(results),
        _left_out(results),
        _failures(results),
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
    parts += results.notes
    return "\n\n".join(parts) + "\n"


def hardware(results: Results) -> str:
    """One line: device, threads, versions."""
    device = results.device
    versions = ", ".join(f"{name} {number}" for name, number in device.versions.items())
    threads = results.threads or default_threads()
    memory = f", {device.memory_gb:g} GB" if device.memory_gb else ""
    power = f", power mode {device.power_mode}" if device.power_mode else ""
    governor = f", governor {device.governor}" if device.governor else ""
    instructions = f" ({device.instructions})" if device.instructions else ""
    return (
        f"{device.processor}{instructions}, {device.cores} cores{memory}{power}{governor}; {device.system}; "
        f"{threads} thread{'s' * (threads != 1)}; {versions}"
    )


def _render(table: Table, form: str) -> str:
    try:
        from tabulate import tabulate
    except ImportError:
        raise MissingExtraError("bench", ["tabulate"]) from None

    return tabulate(table.rows, table.headers, tablefmt=form, disable_numparse=True)


def _golden(results: Results) -> Table:
    rows = tuple(
        (b.name, str(g.reward_count), number(g.mean_difference), number(g.max_difference), g.reference)
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
            label, one.reference, one.data, f"{one.traces} ({one.rewards}){_own(one)}",
            estimate(one.mean), estimate(one.p99), number(one.maximum),
            estimate(one.spearman, ".3f"), estimate(one.kendall, ".3f"),
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
    note = (
        "Quantization: one checkpoint, run in two ways. In brackets: 95% of 1,000 bootstrap samples of the problems. "
        + _counts(results)
    )
    return Table("Fidelity to full precision", headers, tuple(rows), note)


def _capability(results: Results) -> Table:
    def row(one: Capability) -> tuple[str, ...]:
        return (
            one.ours, one.reference, one.data, f"{one.traces}{_own(one)}", estimate(one.spearman, ".3f"),
            estimate(one.kendall, ".3f"), estimate(one.steps, ".3f"), estimate(one.order, ".1%"),
            estimate(one.best, ".1%"),
        )  # fmt: skip

    headers = (
        "rewards of", "against", "data", "traces", "Spearman", "Kendall", "Spearman of steps", "same order of pairs",
        "same best of N",
    )  # fmt: skip
    note = "Capability: another model. This is what the small model cannot do, whatever its precision. "
    rows = tuple(row(one) for one in results.capability)
    return Table("Agreement with the reference model", headers, rows, note + _counts(results))


def _steps(results: Results) -> Table:
    def row(one: StepQuality) -> tuple[str, ...]:
        return (
            one.name, one.data, f"{one.traces} ({one.erroneous} wrong){_own(one)}", _threshold(one),
            estimate(one.f1, ".1%"), number(one.accuracy_erroneous, ".1%"),
            number(one.accuracy_correct, ".1%"), estimate(one.step_auc, ".3f"),
        )  # fmt: skip

    headers = (
        "judge", "data", "rows", "threshold", "F1", "found the first wrong step", "correct accepted", "step AUC",
    )  # fmt: skip
    note = "F1 as ProcessBench defines it; fitted on the same file, it is what the judge could reach. "
    rows = tuple(map(row, results.step_quality))
    return Table("Quality: finding the first wrong step", headers, rows, note + _counts(results))


def _threshold(one: StepQuality) -> str:
    if not one.fitted_on:
        return f"{one.threshold:.3f}"
    return f"{one.threshold:.3f}, fitted on {'the same file' if one.fitted_on == one.data else one.fitted_on}"


def _best_of_n(results: Results) -> Table:
    def row(one: BestOfN, index: int) -> tuple[str, ...]:
        return (
            one.name, one.data, str(one.problems), str(one.n[index]), estimate(one.chosen_interval[index], ".1%"),
            number(one.majority[index], ".1%"), number(one.random[index], ".1%"), number(one.oracle[index], ".1%"),
        )  # fmt: skip

    rows = tuple(row(one, index) for one in results.best_of_n for index in range(len(one.n)))
    headers = ("judge", "data", "problems", "N", "judge's choice", "majority vote", "random", "oracle")
    verdicts = " ".join(one.verdict for one in results.best_of_n)
    return Table("Quality: best of N", headers, rows, f"{verdicts} {_counts(results)}")


def _own(row: Quantization | Capability | StepQuality) -> str:
    """How many traces a row would have without the others, where that is another number."""
    return f"; {row.own} of its own" if row.own != row.traces else ""


def _counts(results: Results) -> str:
    """How the traces of the rows of a table were chosen."""
    if not results.left_out:
        return "Nothing was left out."
    return "Rows of one file are computed on the traces that all of them have; the table Left out counts the others."


def _left_out(results: Results) -> Table:
    def row(one: Omission) -> tuple[str, ...]:
        return one.data or "–", one.of or "all", f"{one.count:,}", short(one.reason), short("; ".join(one.examples))

    headers = ("data", "left out by", "number", "what and why", "for example")
    note = "No number above includes these; a line that begins with the name of a table concerns that table only."
    return Table("Left out", headers, tuple(map(row, results.left_out)), note)


def _failures(results: Results) -> Table:
    rows = tuple((one.name, one.part, one.reason) for one in results.failures)
    return Table("Failed", ("what", "in", "reason"), rows, "Its columns and rows are missing above.")
