"""Results -> pictures as SVG text, drawn by matplotlib: each shows one thing, and is left out when there is nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_prm_bench.results import Comparison, Results

COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#5f3dc4", "#c2255c", "#0b7285", "#866100")
GREY = "#868e96"
SIZE = (5.2, 3.6)


@dataclass(frozen=True)
class Picture:
    """`svg` is a whole `<svg>` element; `caption` says what to see in it."""

    title: str
    caption: str
    svg: str


def pictures(results: Results) -> list[Picture]:
    """Every picture that the results have something for."""
    made = [
        *_scatters(results, "quantization"),
        _differences(results),
        *_scatters(results, "capability"),
        _speed(results),
        _size_and_fidelity(results),
        *_best_of_n(results),
    ]
    return [picture for picture in made if picture is not None]


def _draw(title: str, caption: str, paint: Callable[[Any], None]) -> Picture:
    """Run `paint` on fresh axes; text stays text, and ids are the same at every run."""
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


def _scatters(results: Results, kind: str) -> list[Picture]:
    """One picture for each file and reference, all bundles in it."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in results.comparisons:
        if one.kind == kind and len(_rewards(one)[0]):
            groups.setdefault((one.reference.name, one.data.name), []).append(one)
    return [_scatter(reference, data, group, kind) for (reference, data), group in groups.items()]


def _scatter(reference: str, data: str, group: Sequence[Comparison], kind: str) -> Picture:
    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=1)
        for one, colour in zip(group, _colours(len(group)), strict=True):
            ours, theirs = _rewards(one)
            axes.scatter(theirs, ours, s=14, alpha=0.5, color=colour, linewidths=0, zorder=2, label=one.ours.name)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=reference, ylabel="bundle")
        axes.legend(loc="upper left")

    if kind == "quantization":
        caption = f"Each point is the reward of a step of {data}; on the line, nothing was lost."
        return _draw("Rewards against full precision", caption, paint)
    caption = f"Each point is a step of {data}. Two models: what counts is the order, not the line."
    return _draw(f"Rewards against {reference}", caption, paint)


def _differences(results: Results) -> Picture | None:
    shown = [one for one in results.comparisons if one.kind == "quantization"]
    several = len({one.data.name for one in shown}) > 1
    differences = {}
    for one in shown:
        ours, theirs = _rewards(one)
        if len(ours):
            differences[one.ours.name + (f", {one.data.name}" if several else "")] = np.abs(ours - theirs)
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
        bundle.name: {one.tokens: one.tokens_per_second for one in bundle.speed.prefill}
        for bundle in results.bundles
        if bundle.speed is not None
    }
    if not lines:
        return None
    peers = {peer.name: peer.prefill for peer in results.peers if peer.prefill}

    def paint(axes: Any) -> None:
        for (name, speeds), colour in zip((lines | peers).items(), _colours(len(lines) + len(peers)), strict=True):
            kept = sorted(speeds)
            style = "--" if name in peers else "-"
            axes.plot(kept, [speeds[n] for n in kept], style, marker="o", markersize=4, label=name, color=colour)
        every = sorted({n for speeds in (lines | peers).values() for n in speeds})
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [f"{n:,}" for n in every])
        axes.minorticks_off()
        axes.set(xlabel="tokens of the text", ylabel="tokens/s", ylim=(0, None))
        axes.legend()

    return _draw("Speed by length", "Prefill of one text; other engines are dashed.", paint)


def _size_and_fidelity(results: Results) -> Picture | None:
    by_name = {one.ours: one.mean.value for one in results.quantization}
    golden = {b.name: b.golden.mean_difference for b in results.bundles if b.golden is not None}
    points = [(b.name, b.size_gb, by_name.get(b.name, golden.get(b.name))) for b in results.bundles]
    points += [(peer.name, peer.size_gb, peer.mean) for peer in results.peers if peer.size_gb is not None]
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


def _best_of_n(results: Results) -> list[Picture | None]:
    drawn = []
    for data in dict.fromkeys(one.data for one in results.best_of_n):
        curves = [one for one in results.best_of_n if one.data == data and len(one.n) > 1]
        if not curves:
            continue
        first = curves[0]

        def paint(axes: Any, curves: Sequence[Any] = curves, first: Any = first) -> None:
            for one, colour in zip(curves, _colours(len(curves)), strict=True):
                axes.plot(one.n, one.chosen, marker="o", markersize=4, color=colour, label=one.name)
            if not math.isnan(first.majority[0]):
                axes.plot(first.n, first.majority, "--", color="#343a40", label="majority vote")
            axes.plot(first.n, first.oracle, ":", color=GREY, label="oracle")
            axes.plot(first.n, first.random, "-.", color=GREY, label="random")
            axes.set_xscale("log", base=2)
            axes.set_xticks(first.n, [str(n) for n in first.n])
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set(xlabel="candidates", ylabel="right answers")
            axes.legend()

        ours = {bundle.name for bundle in results.bundles}
        caption = " ".join(one.verdict for one in curves if one.name in ours)
        drawn.append(_draw(f"Best of N on {data}", caption, paint))
    return list(drawn)


def _rewards(one: Comparison) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    pairs = [
        pair
        for mine, theirs in zip(one.ours.rewards, one.reference.rewards, strict=True)
        if mine is not None and theirs is not None
        for pair in zip(mine, theirs, strict=True)
    ]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
