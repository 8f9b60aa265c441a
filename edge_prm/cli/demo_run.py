"""The main job, from checkpoint to ranked candidates, on the embedded checkpoints."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edge_prm.cli.view import ranking_lines, score_lines
from edge_prm.demo.derivations import Derivation, generate, plant_mistake
from edge_prm.output import temporary_folder
from edge_prm.prm import PRM, load
from edge_prm.source import EMBEDDED

SEED = 20_000_007
"""Of the examples that show what a PRM does; how often it is right is measured on others."""
DERIVATIONS = 3
CANDIDATES = 4
COMPARED = 60
WEAK_BELOW = 0.5
INT8, FP32, REFERENCE = ("demo", "int8"), ("demo", "fp32"), ("demo-reference", "fp32")
"""Name of an embedded checkpoint, and the recipe that it is exported with."""

Show = Callable[[str], object]


def run_demo(threads: int | None, progress: Any, show: Show) -> dict[str, Any]:
    """Run the demo, `show` its lines, and return its figures.

    Where the 8-bit kernels of this processor saturate, int8 is exported with 7-bit weights, as a user should.
    """
    from edge_prm.backends.onnx.saturation import saturates

    started = time.perf_counter()
    reduce_range = bool(saturates())
    with temporary_folder("edge-prm-demo-") as folder, ExitStack() as opened:
        prms = {
            key: opened.enter_context(load(bundle, threads=threads))
            for key, bundle in _export(folder, reduce_range, progress).items()
        }
        derivations = list(generate(SEED, DERIVATIONS, mistake_rate=0.0))
        _show_scores(prms[INT8], derivations, show)
        best = _show_ranking(prms[INT8], derivations[0], show)
        facts = _compare(prms, list(generate(SEED + 1, COMPARED)))
    facts |= {"best": best, "reduce_range": reduce_range, "seconds": round(time.perf_counter() - started, 2)}
    _show_facts(facts, show)
    return facts


def _export(folder: Path, reduce_range: bool, progress: Any) -> dict[tuple[str, str], Path]:
    from edge_prm_export import export

    return {
        (name, recipe): export(
            f"{EMBEDDED}{name}",
            folder / f"{name}-{recipe}",
            recipe=recipe,
            reduce_range=reduce_range and recipe == INT8[1],
            progress=progress,
        )
        for name, recipe in (INT8, FP32, REFERENCE)
    }


def _show_scores(prm: PRM, derivations: list[Derivation], show: Show) -> None:
    rng = random.Random(SEED)
    for number, right in enumerate(derivations, start=1):
        wrong = plant_mistake(right, rng)
        assert wrong.first_wrong is not None, "a mistake was just planted"
        show("")
        show(right.problem)
        for title, derivation in (
            (f"{number}. right", right),
            (f"{number}. mistake in step {wrong.first_wrong + 1}", wrong),
        ):
            score = prm.score(derivation.problem, derivation.steps)
            for line in score_lines(title, score, WEAK_BELOW):
                show(line)


def _show_ranking(prm: PRM, right: Derivation, show: Show) -> int | None:
    """Rank wrong candidates and a right one, show the ranking, and return the index of the best."""
    rng = random.Random(SEED + 2)
    candidates = [plant_mistake(right, rng).steps for _ in range(CANDIDATES - 1)]
    candidates.insert(2, right.steps)
    ranking = prm.rank(right.problem, candidates)
    show("")
    show(f"{right.problem} (candidate 2 is right)")
    for line in ranking_lines("best of n", ranking, WEAK_BELOW):
        show(line)
    return ranking.best


def _compare(prms: dict[tuple[str, str], PRM], derivations: list[Derivation]) -> dict[str, Any]:
    """Compare rewards of int8, fp32 and the larger reference on the same derivations, and with the truth."""
    rewards = {
        key: [reward for d in derivations for reward in prm.score(d.problem, d.steps).rewards]
        for key, prm in prms.items()
    }
    truth = [label for d in derivations for label in d.labels]
    int8, reference = _verdicts(rewards[INT8]), _verdicts(rewards[REFERENCE])
    differences = [abs(a - b) for a, b in zip(rewards[INT8], rewards[FP32], strict=True)]
    return {
        "steps": len(truth),
        "mean_difference": sum(differences) / len(differences),
        "max_difference": max(differences),
        "right": _agreement(int8, truth),
        "reference_right": _agreement(reference, truth),
        "agreement": _agreement(int8, reference),
    }


def _verdicts(rewards: Sequence[float]) -> list[bool]:
    return [reward >= WEAK_BELOW for reward in rewards]


def _agreement(verdicts: Sequence[bool], others: Sequence[bool]) -> float:
    """The share of verdicts, in [0, 1], that are the same in both."""
    return sum(a == b for a, b in zip(verdicts, others, strict=True)) / len(verdicts)


def _show_facts(facts: dict[str, Any], show: Show) -> None:
    show("")
    show(f"{facts['steps']} more steps of {COMPARED} derivations, half of them with a planted mistake:")
    show(f"  int8 is {facts['mean_difference']:.4f} from fp32 on average, {facts['max_difference']:.4f} at most")
    show(f"  verdicts that match the truth: int8 {facts['right']:.1%}, larger reference {facts['reference_right']:.1%}")
    show(f"  int8 and reference agree on {facts['agreement']:.1%} of the verdicts")
    option = ""
    if facts["reduce_range"]:
        option = " --reduce-range"
        show("  the 8-bit kernels of this processor saturate: int8 was exported with --reduce-range (7-bit weights)")
    show(f"The demo took {facts['seconds']:.1f} s. Next: edge-prm export YOUR-CHECKPOINT --int8{option} -o prm-int8")
