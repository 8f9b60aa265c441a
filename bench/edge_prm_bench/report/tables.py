"""Results -> tables of text, the same for the terminal, Markdown and the HTML report."""

from __future__ import annotations

from edge_prm.errors import MissingExtraError
from edge_prm_bench.baselines import Baseline
from edge_prm_bench.report.cells import NONE, Table, estimate, number, plural, short
from edge_prm_bench.report.speed_table import speed_table
from edge_prm_bench.results import Results
from edge_prm_bench.speed.nvml import CardFacts
from edge_prm_bench.statistics.best_of_n import BestOfN, BestOfNPoint
from edge_prm_bench.statistics.coverage import Omission
from edge_prm_bench.statistics.fidelity import Capability, Pairing, Quantization
from edge_prm_bench.statistics.steps import StepQuality, Threshold


def tables(results: Results) -> list[Table]:
    """The tables that have rows."""
    every = (
        speed_table(results),
        _golden(results),
        _quantization(results),
        _positions(results),
        _capability(results),
        _steps(results),
        _best_of_n(results),
        _skipped(results),
        _failures(results),
    )
    return [table for table in every if table.rows]


def as_text(table: Table) -> str:
    """The table for a terminal; MissingExtraError without tabulate."""
    return _render(table, "simple")


def as_markdown(table: Table) -> str:
    """The table in GitHub's Markdown; MissingExtraError without tabulate."""
    return _render(table, "github")


def markdown(results: Results) -> str:
    """The hardware line, then all tables with titles and notes, to be pasted into a document."""
    parts = [hardware(results)]
    for table in tables(results):
        parts.append(f"**{table.title}**" + (f". {table.note}" if table.note else ""))
        parts.append(as_markdown(table))
    parts += results.notes
    return "\n\n".join(parts) + "\n"


def hardware(results: Results) -> str:
    """One line: processor with its int8 instructions, cores, memory, system, threads, and versions of packages."""
    device, threads = results.environment.device, results.environment.threads
    processor = device.processor
    instructions = ", ".join(processor.instructions) or "no int8 instructions known"
    facts = [f"{processor.name} ({instructions})", plural(processor.cores, "core")]
    facts += [f"{device.memory_gb:g} GB"] if device.memory_gb else []
    facts += [_card(name, card) for name, card in results.environment.cards.items()]
    facts += [f"power mode {device.power_mode}"] if device.power_mode else []
    facts += [f"governor {processor.governor}"] if processor.governor else []
    versions = ", ".join(f"{name} {version}" for name, version in device.versions.items())
    return f"{', '.join(facts)}; {device.system}; {plural(threads, 'thread')}; {versions}"


def _card(device: str, card: CardFacts) -> str:
    known = (card.name, f"{card.memory_gb:g} GB" if card.memory_gb else "", card.driver and f"driver {card.driver}")
    return f"{device}: " + ", ".join(filter(None, known))


def _render(table: Table, style: str) -> str:
    try:
        from tabulate import tabulate
    except ImportError:
        raise MissingExtraError("bench", ["tabulate"]) from None

    return tabulate(table.rows, table.headers, tablefmt=style, disable_numparse=True)


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
        "Measured at export, and stored in every bundle; `edge-prm check` repeats it on this device.",
    )


def _quantization(results: Results) -> Table:
    rows = [_quantization_row(row, row.pairing.name) for row in results.fidelity.quantization]
    if rows:
        rows += [_quantization_row(row, f"noise floor: {row.pairing.name}") for row in results.fidelity.noise_floor]
        rows += [_baseline_row(baseline) for baseline in results.baselines if baseline.mean is not None]
    headers = (
        "rewards of", "against", "data", "traces (rewards)", "mean difference", "99%", "largest", "Spearman", "Kendall",
        "verdicts that flip", "same first weak step", "same best of N",
    )  # fmt: skip
    note = (
        "Quantization: one checkpoint, run in two ways. In brackets: 95% of 1,000 bootstrap samples of the problems. "
        + _counts(results)
    )
    return Table("Fidelity to full precision", headers, tuple(rows), note)


def _quantization_row(row: Quantization, label: str) -> tuple[str, ...]:
    pairing, difference, agreement, verdicts = row.pairing, row.difference, row.agreement, row.verdicts
    return (
        label, pairing.reference, pairing.data, f"{pairing.traces} ({pairing.rewards}){_own(pairing)}",
        estimate(difference.mean), estimate(difference.p99), number(difference.maximum),
        estimate(agreement.spearman, ".3f"), estimate(agreement.kendall, ".3f"),
        estimate(verdicts.flip_rate, ".1%"), estimate(verdicts.first_weak, ".1%"), estimate(agreement.best, ".1%"),
    )  # fmt: skip


def _positions(results: Results) -> Table:
    """Only of rows whose rewards lie in several ranges."""
    rows = tuple(
        (
            row.pairing.name, row.pairing.data, f"{place.start + 1:,} to {place.end:,}", f"{place.rewards:,}",
            estimate(place.mean),
        )
        for row in results.fidelity.quantization
        if len(row.by_position) > 1
        for place in row.by_position
    )  # fmt: skip
    headers = ("rewards of", "data", "tokens up to the reward", "rewards", "mean difference")
    return Table("Fidelity by position", headers, rows, "How far into its text a reward is read.")


def _baseline_row(baseline: Baseline) -> tuple[str, ...]:
    known = (number(baseline.mean), number(baseline.p99), NONE, number(baseline.spearman, ".3f"))
    return baseline.name, "as its file says", NONE, NONE, *known, *(NONE,) * 4


def _capability(results: Results) -> Table:
    headers = (
        "rewards of", "against", "data", "traces", "Spearman", "Kendall", "Spearman of steps", "same order of pairs",
        "same best of N",
    )  # fmt: skip
    note = "Capability: another model. This is what the small model cannot do, whatever its precision. "
    rows = tuple(_capability_row(row) for row in results.fidelity.capability)
    return Table("Agreement with the reference model", headers, rows, note + _counts(results))


def _capability_row(row: Capability) -> tuple[str, ...]:
    pairing, agreement = row.pairing, row.agreement
    return (
        pairing.name, pairing.reference, pairing.data, f"{pairing.traces}{_own(pairing)}",
        estimate(agreement.spearman, ".3f"), estimate(agreement.kendall, ".3f"), estimate(row.steps, ".3f"),
        estimate(row.order, ".1%"), estimate(agreement.best, ".1%"),
    )  # fmt: skip


def _steps(results: Results) -> Table:
    headers = (
        "rewards of", "data", "rows", "threshold", "F1", "found the first wrong step", "correct accepted", "step AUC",
    )  # fmt: skip
    note = "F1 as ProcessBench defines it; fitted on the same file, it is the F1 that could be reached. "
    rows = tuple(map(_steps_row, results.quality.steps))
    return Table("Quality: finding the first wrong step", headers, rows, note + _counts(results))


def _steps_row(row: StepQuality) -> tuple[str, ...]:
    sample = row.sample
    own = f"; {sample.own} of its own" if sample.own != sample.traces else ""
    return (
        row.name, sample.data, f"{sample.traces} ({sample.erroneous} wrong){own}",
        _threshold(row.threshold, sample.data), estimate(row.f1.value, ".1%"),
        number(row.f1.accuracy_erroneous, ".1%"), number(row.f1.accuracy_correct, ".1%"),
        estimate(row.auc.value, ".3f"),
    )  # fmt: skip


def _threshold(threshold: Threshold, data: str) -> str:
    if not threshold.fitted_on:
        return f"{threshold.value:.3f}"
    return f"{threshold.value:.3f}, fitted on {'the same file' if threshold.fitted_on == data else threshold.fitted_on}"


def _best_of_n(results: Results) -> Table:
    chosen = results.quality.best_of_n
    rows = tuple(_best_of_n_row(row, point) for row in chosen for point in row.points)
    headers = ("rewards of", "data", "problems", "N", "best score", "majority vote", "random", "oracle")
    verdicts = " ".join(row.verdict for row in chosen)
    return Table("Quality: best of N", headers, rows, f"{verdicts} {_counts(results)}")


def _best_of_n_row(row: BestOfN, point: BestOfNPoint) -> tuple[str, ...]:
    return (
        row.name, row.data, str(row.problems), str(point.n), estimate(point.chosen, ".1%"),
        number(point.majority, ".1%"), number(point.random, ".1%"), number(point.oracle, ".1%"),
    )  # fmt: skip


def _own(pairing: Pairing) -> str:
    """How many traces a row would have without the others, where that is another number."""
    return f"; {pairing.own} of its own" if pairing.own != pairing.traces else ""


def _counts(results: Results) -> str:
    """How the traces of the rows of a table were chosen."""
    if not results.skipped:
        return "Nothing was skipped."
    return "Rows of one file are computed on the traces that all of them have; the table Skipped counts the others."


def _skipped(results: Results) -> Table:
    headers = ("data", "skipped by", "number", "what and why", "for example")
    note = "No number above includes these; a line that begins with the name of a table concerns that table only."
    return Table("Skipped", headers, tuple(map(_skipped_row, results.skipped)), note)


def _skipped_row(omission: Omission) -> tuple[str, ...]:
    examples = short("; ".join(omission.examples))
    return omission.data or NONE, omission.by or "all", f"{omission.count:,}", short(omission.reason), examples


def _failures(results: Results) -> Table:
    rows = tuple((failure.name, failure.part, failure.reason) for failure in results.failures)
    return Table("Failed", ("what", "in", "reason"), rows, "Its columns and rows are missing above.")
