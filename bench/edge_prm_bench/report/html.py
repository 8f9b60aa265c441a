"""Results -> one HTML file that needs no network: conclusions first, then pictures, tables, disagreements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import edge_prm
from edge_prm.errors import MissingExtraError
from edge_prm_bench.report.cells import number, size
from edge_prm_bench.report.pictures import pictures
from edge_prm_bench.report.tables import hardware, tables
from edge_prm_bench.results import BundleResult, Comparison, Results, Speed
from edge_prm_bench.statistics.best_of_n import BestOfNPoint
from edge_prm_bench.statistics.fidelity import Quantization, largest_differences

TEMPLATE = "report.html.jinja"
DISAGREEMENTS = 5
LONGEST_TEXT = 400
VERDICTS = {"good": "Faithful", "fair": "Close, not the same", "bad": "Not faithful"}
GOOD_MEAN, FAIR_MEAN = 0.01, 0.03
"""Limits of the grades of a mean difference of reward; for comparison, torch bf16 differs from fp32 by 0.003."""


@dataclass(frozen=True)
class Card:
    """One large figure; `grade`: good, fair, bad, or "" where it is not graded."""

    value: str
    label: str
    grade: str = ""


def html(results: Results) -> str:
    """Return the report as one HTML document. MissingExtraError when matplotlib or jinja2 is not installed."""
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
        disagreements=[_disagreement(comparison) for comparison in results.fidelity.comparisons],
        version=edge_prm.__version__,
    )


def sentence(results: Results, bundle: BundleResult) -> str:
    """The conclusion about a bundle, the most important words first."""
    parts = []
    if (main := _main(results, bundle)) is not None:
        parts.append(_fidelity_sentence(results, main))
    elif bundle.golden is not None:
        parts.append(f"Its golden rewards are {number(bundle.golden.mean_difference)} from full precision on average.")
    parts += [chosen.verdict for chosen in results.quality.best_of_n if chosen.name == bundle.name]
    parts += [f"Failed in {f.part}: {f.reason}" for f in results.failures if f.name == bundle.name]
    throttling = results.environment.throttling
    if throttling is not None and throttling.slowed:
        parts.append(throttling.sentence)
    return " ".join(parts)


def _fidelity_sentence(results: Results, main: Quantization) -> str:
    pairing, mean = main.pairing, main.difference.mean.value
    floors = "".join(
        f"; {floor.pairing.name} differs by {number(floor.difference.mean.value)}"
        for floor in results.fidelity.noise_floor
        if floor.pairing.data == pairing.data
    )
    return (
        f"{VERDICTS[_grade(mean)]}: on {pairing.traces} traces of {pairing.data} its rewards are {number(mean)} from "
        f"{pairing.reference} on average, and {main.verdicts.flip_rate.value:.1%} of the verdicts flip{floors}."
    )


def cards(results: Results, bundle: BundleResult) -> list[Card]:
    """The figures people look for first, at most one of each."""
    shown = [Card(size(bundle.size_gb), f"{bundle.recipe} of {bundle.source}")]
    if bundle.speed is not None:
        shown += _speed_cards(bundle.speed)
    if (main := _main(results, bundle)) is not None:
        mean = main.difference.mean.value
        shown.append(Card(number(mean), f"mean difference from {main.pairing.reference}", _grade(mean)))
    return shown + _model_cards(results, bundle)


def _speed_cards(speed: Speed) -> list[Card]:
    fixed = speed.fixed
    shown = [Card(f"{fixed.tokens_per_second:,.0f} tokens/s", f"one text of {fixed.tokens} tokens")]
    longest = max(speed.peak_gb)
    if (peak := speed.peak_gb[longest]) is not None:
        shown.append(Card(f"{peak:.2f} GB", f"peak memory at {longest:,} tokens"))
    if speed.push is not None:
        shown.append(Card(f"{speed.push.first.p50 * 1000:.0f} ms", f"to judge a step of {speed.push.tokens} tokens"))
    return shown


def _model_cards(results: Results, bundle: BundleResult) -> list[Card]:
    """What the model can do, against a larger model and against labels."""
    shown = []
    others = [row for row in results.fidelity.capability if row.pairing.name == bundle.name]
    for row in [row for row in others if not math.isnan(row.agreement.spearman.value)][:1]:
        shown.append(Card(f"{row.agreement.spearman.value:.2f}", f"rank correlation with {row.pairing.reference}"))
    graded = [row for row in results.quality.steps if row.name == bundle.name and not math.isnan(row.f1.value.value)]
    for quality in graded[:1]:
        label = f"F1 on {quality.sample.data} at {quality.threshold.value:.3g}"
        shown.append(Card(f"{quality.f1.value.value:.0%}", label))
    several = [row for row in results.quality.best_of_n if row.name == bundle.name and len(row.points) > 1]
    return shown + [_best_of_n_card(row.last) for row in several[:1]]


def _best_of_n_card(point: BestOfNPoint) -> Card:
    best, vote = point.chosen.value, point.majority
    against = "" if math.isnan(vote) else f"; majority vote {vote:.0%}"
    return Card(f"{best:.0%}", f"right at best of {point.n}{against}", "fair" if vote > best else "good")


def _main(results: Results, bundle: BundleResult) -> Quantization | None:
    """The comparison with full precision that has the most rewards."""
    own = [row for row in results.fidelity.quantization if row.pairing.name == bundle.name and row.pairing.rewards]
    return max(own, key=lambda row: row.pairing.rewards, default=None)


def _grade(mean: float) -> str:
    return "good" if mean <= GOOD_MEAN else "fair" if mean <= FAIR_MEAN else "bad"


def _disagreement(comparison: Comparison) -> dict[str, Any]:
    """The traces of a comparison with the largest differences, as the template shows them."""
    bundle, reference = comparison.bundle, comparison.reference
    traces = []
    for index in largest_differences(comparison.data, bundle, reference, DISAGREEMENTS):
        trace = comparison.data.traces[index]
        rows = zip(trace.texts, bundle.rewards[index] or (), reference.rewards[index] or (), strict=True)
        steps = [{"text": _short(text), "rewards": [_heat(ours), _heat(theirs)]} for text, ours, theirs in rows]
        traces.append({"id": trace.id, "prompt": _short(trace.trajectory.prompt), "steps": steps})
    return {"bundle": bundle.name, "reference": reference.name, "data": comparison.data.name, "traces": traces}


def _heat(reward: float) -> dict[str, str]:
    return {"shown": f"{reward:.3f}", "colour": _colour(reward)}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _colour(reward: float) -> str:
    """From red by yellow to green, pale enough for black text."""
    return f"hsl({round(120 * min(1.0, max(0.0, reward)))} 75% 82%)"
