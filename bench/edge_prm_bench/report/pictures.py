"""Results -> pictures as SVG text, drawn by matplotlib. A picture without anything to show is omitted."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_prm.arrays import Float64
from edge_prm_bench.results import Comparison, Results
from edge_prm_bench.statistics.best_of_n import BestOfN

COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#5f3dc4", "#c2255c", "#0b7285", "#866100")
GREY = "#868e96"
SIZE = (5.2, 3.6)


@dataclass(frozen=True)
class Picture:
    """`svg` is an `<svg>` element; `caption` says what to see in it."""

    title: str
    caption: str
    svg: str


def pictures(results: Results) -> list[Picture]:
    """Every picture that the results have something for."""
    drawn = [
        *_scatters(results, True),
        _differences(results),
        *_scatters(results, False),
        _speed(results),
        _size_and_fidelity(results),
        *_best_of_n(results),
    ]
    return [picture for picture in drawn if picture is not None]


def _draw(title: str, caption: str, paint: Callable[[Any], None]) -> Picture:
    """Run `paint` on new axes. Text stays text, and ids are the same in every run."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "edge-prm", "font.family": "sans-serif", "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.grid": True,
        "grid.color": "#e9ecef", "axes.axisbelow": True, "legend.frameon": False,
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        paint(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
        pyplot.close(figure)
    text = stream.getvalue()
    return Picture(title, caption, text[text.index("<svg") :])


def _scatters(results: Results, of_quantization: bool) -> list[Picture]:
    """One picture for each file and reference, all bundles in it."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in results.fidelity.comparisons:
        if comparison.of_quantization == of_quantization and len(_rewards(comparison)[0]):
            groups.setdefault((comparison.reference.name, comparison.data.name), []).append(comparison)
    return [_scatter(group) for group in groups.values()]


def _scatter(group: Sequence[Comparison]) -> Picture:
    reference, data = group[0].reference.name, group[0].data.name

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=1)
        for comparison, colour in zip(group, _colours(len(group)), strict=True):
            ours, theirs = _rewards(comparison)
            name = comparison.bundle.name
            axes.scatter(theirs, ours, s=14, alpha=0.5, color=colour, linewidths=0, zorder=2, label=name)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=reference, ylabel="bundle")
        axes.legend(loc="upper left")

    if group[0].of_quantization:
        caption = f"Each point is the reward of a step of {data}; on the line, both are equal."
        return _draw("Rewards against full precision", caption, paint)
    caption = f"Each point is a step of {data}. Two models: what counts is the order, not the line."
    return _draw(f"Rewards against {reference}", caption, paint)


def _differences(results: Results) -> Picture | None:
    shown = [comparison for comparison in results.fidelity.comparisons if comparison.of_quantization]
    several = len({comparison.data.name for comparison in shown}) > 1
    differences = {}
    for comparison in shown:
        ours, theirs = _rewards(comparison)
        if len(ours):
            name = comparison.bundle.name + (f", {comparison.data.name}" if several else "")
            differences[name] = np.abs(ours - theirs)
    if not differences:
        return None
    widest = max(float(values.max()) for values in differences.values()) or 1e-6
    bins = np.linspace(0, widest, 31)

    def paint(axes: Any) -> None:
        for (name, values), colour in zip(differences.items(), _colours(len(differences)), strict=True):
            axes.hist(values, bins=bins, label=name, color=colour, histtype="step", linewidth=1.6)
        axes.set(xlabel="difference of a reward", ylabel="steps", yscale="log")
        axes.legend()

    return _draw("How far rewards move", "Differences from full precision, on a logarithmic scale of steps.", paint)


def _speed(results: Results) -> Picture | None:
    lines = {
        bundle.name: {each.tokens: each.tokens_per_second for each in bundle.speed.prefill}
        for bundle in results.bundles
        if bundle.speed is not None
    }
    if not lines:
        return None
    baselines = {baseline.name: baseline.prefill for baseline in results.baselines if baseline.prefill}

    def paint(axes: Any) -> None:
        for (name, speeds), colour in zip(
            (lines | baselines).items(), _colours(len(lines) + len(baselines)), strict=True
        ):
            kept = sorted(speeds)
            style = "--" if name in baselines else "-"
            axes.plot(kept, [speeds[n] for n in kept], style, marker="o", markersize=4, label=name, color=colour)
        every = sorted({n for speeds in (lines | baselines).values() for n in speeds})
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [f"{n:,}" for n in every])
        axes.minorticks_off()
        axes.set(xlabel="tokens of the text", ylabel="tokens/s", ylim=(0, None))
        axes.legend()

    return _draw("Speed by length", "Prefill of one text; other engines are dashed.", paint)


def _size_and_fidelity(results: Results) -> Picture | None:
    by_name = {row.pairing.name: row.difference.mean.value for row in results.fidelity.quantization}
    golden = {b.name: b.golden.mean_difference for b in results.bundles if b.golden is not None}
    points = [(b.name, b.size_gb, by_name.get(b.name, golden.get(b.name))) for b in results.bundles]
    points += [(each.name, each.size_gb, each.mean) for each in results.baselines if each.size_gb is not None]
    known = [(name, size, mean) for name, size, mean in points if mean is not None and size is not None and mean > 0]
    if len(known) < 2:
        return None

    largest = max(size for _, size, _ in known)
    unit, factor = ("GB", 1) if largest >= 0.1 else ("MB", 1000)

    def paint(axes: Any) -> None:
        for (name, size, mean), colour in zip(known, _colours(len(known)), strict=True):
            axes.scatter([size * factor], [mean], s=50, color=colour, label=name)
        highest = max(mean for _, _, mean in known)
        axes.set(xlabel=f"size, {unit}", ylabel="mean difference of reward")
        axes.set(xlim=(0, 1.15 * largest * factor), ylim=(0, 1.25 * highest))
        axes.legend(loc="lower left")

    return _draw("Size against fidelity", "Lower left is better.", paint)


def _best_of_n(results: Results) -> list[Picture]:
    """One picture for each file."""
    files = dict.fromkeys(row.data for row in results.quality.best_of_n)
    curves = [[r for r in results.quality.best_of_n if r.data == data and len(r.points) > 1] for data in files]
    bundles = {bundle.name for bundle in results.bundles}
    return [_best_of_n_picture(rows, bundles) for rows in curves if rows]


def _best_of_n_picture(rows: Sequence[BestOfN], bundles: Collection[str]) -> Picture:
    points = rows[0].points
    counts = [point.n for point in points]

    def paint(axes: Any) -> None:
        for row, colour in zip(rows, _colours(len(rows)), strict=True):
            chosen = [point.chosen.value for point in row.points]
            axes.plot([point.n for point in row.points], chosen, marker="o", markersize=4, color=colour, label=row.name)
        if not math.isnan(points[0].majority):
            axes.plot(counts, [point.majority for point in points], "--", color="#343a40", label="majority vote")
        axes.plot(counts, [point.oracle for point in points], ":", color=GREY, label="oracle")
        axes.plot(counts, [point.random for point in points], "-.", color=GREY, label="random")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set(xlabel="candidates", ylabel="right answers")
        axes.legend()

    caption = " ".join(row.verdict for row in rows if row.name in bundles)
    return _draw(f"Best of N on {rows[0].data}", caption, paint)


def _rewards(comparison: Comparison) -> tuple[Float64, Float64]:
    """Rewards of bundle and reference, [rewards] each, of the traces that both have."""
    pairs = [
        pair
        for ours, theirs in zip(comparison.bundle.rewards, comparison.reference.rewards, strict=True)
        if ours is not None and theirs is not None
        for pair in zip(ours, theirs, strict=True)
    ]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
