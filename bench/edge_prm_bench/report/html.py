"""Results -> one HTML file that needs no network: what to conclude first, then pictures, tables, disagreements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import edge_prm
from edge_prm.errors import MissingExtraError
from edge_prm_bench.report.cells import number, size
from edge_prm_bench.report.pictures import pictures
from edge_prm_bench.report.tables import hardware, tables
from edge_prm_bench.results import BundleResult, Comparison, Results
from edge_prm_bench.statistics.fidelity import Quantization, worst

TEMPLATE = "report.html.jinja"
WORST = 5
LONGEST_TEXT = 400
VERDICTS = {"good": "Faithful", "fair": "Close, not the same", "bad": "Not faithful"}
GOOD_MEAN, FAIR_MEAN = 0.01, 0.03
"""This report's own grades of a mean difference of reward; beside them, torch bf16 differs from fp32 by 0.003."""


@dataclass(frozen=True)
class Card:
    """One large number; `grade` is good, fair, bad or nothing."""

    value: str
    label: str
    grade: str = ""


def html(results: Results) -> str:
    """Return the report. MissingExtraError when matplotlib or jinja2 is not installed."""
    try:
        from jinja2 import Environment, PackageLoader, select_autoescape

        drawn = pictures(results)
    except ImportError as error:
        raise MissingExtraError("bench", [error.name or "matplotlib"]) from None
    environment = Environment(
        loader=PackageLoader("edge_prm_bench", ""), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        names=", ".join(bundle.name for bundle in results.bundles),
        hardware=hardware(results),
        bundles=[
            {"name": bundle.name, "sentence": sentence(results, bundle), "cards": cards(results, bundle)}
            for bundle in results.bundles
        ],
        pictures=drawn,
        tables=tables(results),
        notes=results.notes,
        disagreements=[_disagreement(one) for one in results.comparisons],
        version=edge_prm.__version__,
    )


def sentence(results: Results, bundle: BundleResult) -> str:
    """What to conclude of a bundle, in a few words first."""
    parts = []
    main = _main(results, bundle)
    if main is not None:
        floors = [floor for floor in results.noise_floor if floor.data == main.data]
        beside = "".join(f"; {floor.ours} differs by {number(floor.mean.value)}" for floor in floors)
        full = "full precision" if " fp32" in main.reference else main.reference
        parts.append(
            f"{VERDICTS[_grade(main.mean.value)]}: on {main.traces} traces of {main.data} its rewards are "
            f"{number(main.mean.value)} from {full} on average, and {main.flips.value:.1%} of the verdicts "
            f"flip{beside}."
        )
    elif bundle.golden is not None:
        parts.append(f"Its golden rewards are {number(bundle.golden.mean_difference)} from full precision on average.")
    parts += [chosen.verdict for chosen in results.best_of_n if chosen.name == bundle.name]
    parts += [f"Failed in {f.part}: {f.reason}" for f in results.failures if f.name == bundle.name]
    if results.throttling is not None and results.throttling.slowed:
        parts.append(results.throttling.sentence)
    return " ".join(parts)


def cards(results: Results, bundle: BundleResult) -> list[Card]:
    """The figures people look for first, one of a kind."""
    made = [Card(size(bundle.size_gb), f"{bundle.recipe} of {bundle.source}")]
    speed = bundle.speed
    if speed is not None:
        near = next(one for one in speed.prefill if one.tokens == speed.energy_tokens)
        made.append(Card(f"{near.tokens_per_second:,.0f} tokens/s", f"one text of {near.tokens} tokens"))
        longest = max(speed.peak_gb)
        if (peak := speed.peak_gb[longest]) is not None:
            made.append(Card(f"{peak:.2f} GB", f"peak memory at {longest:,} tokens"))
        if speed.push is not None:
            made.append(Card(f"{speed.push.first.p50 * 1000:.0f} ms", f"to judge a step of {speed.push.tokens} tokens"))
    main = _main(results, bundle)
    if main is not None:
        made.append(Card(number(main.mean.value), f"mean difference from {main.reference}", _grade(main.mean.value)))
    others = [one for one in results.capability if one.ours == bundle.name and not math.isnan(one.spearman.value)]
    if others:
        made.append(Card(f"{others[0].spearman.value:.2f}", f"rank correlation with {others[0].reference}"))
    judged = [one for one in results.step_quality if one.name == bundle.name and not math.isnan(one.f1.value)]
    if judged:
        made.append(Card(f"{judged[0].f1.value:.0%}", f"F1 on {judged[0].data} at {judged[0].threshold:.3g}"))
    for chosen in [one for one in results.best_of_n if one.name == bundle.name and len(one.n) > 1][:1]:
        best, vote = chosen.chosen[-1], chosen.majority[-1]
        beside = "" if math.isnan(vote) else f"; majority vote {vote:.0%}"
        made.append(Card(f"{best:.0%}", f"right at best of {chosen.n[-1]}{beside}", "fair" if vote > best else "good"))
    return made


def _main(results: Results, bundle: BundleResult) -> Quantization | None:
    """The comparison with full precision that says most: the one with the most rewards."""
    own = [one for one in results.quantization if one.ours == bundle.name and one.rewards]
    return max(own, key=lambda one: one.rewards, default=None)


def _grade(mean: float) -> str:
    return "good" if mean <= GOOD_MEAN else "fair" if mean <= FAIR_MEAN else "bad"


def _disagreement(one: Comparison) -> dict[str, Any]:
    traces = []
    for index in worst(one.data, one.ours, one.reference, WORST):
        trace = one.data.traces[index]
        ours, theirs = one.ours.rewards[index] or (), one.reference.rewards[index] or ()
        steps = [
            {
                "text": _short(text),
                "rewards": [{"shown": f"{reward:.3f}", "colour": _colour(reward)} for reward in pair],
            }
            for text, *pair in zip(trace.texts, ours, theirs, strict=True)
        ]
        traces.append({"id": trace.id, "prompt": _short(trace.trajectory.prompt), "steps": steps})
    return {"ours": one.ours.name, "reference": one.reference.name, "data": one.data.name, "traces": traces}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _colour(reward: float) -> str:
    """From red by yellow to green, pale enough for black text."""
    return f"hsl({round(120 * min(1.0, max(0.0, reward)))} 75% 82%)"
