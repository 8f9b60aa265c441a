"""What `edge-prm demo` does: the main job, from checkpoint to ranked candidates, on the embedded checkpoints."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from edge_prm.cli.view import ranking_lines, score_lines
from edge_prm.demo.derivations import Derivation, generate, plant_mistake
from edge_prm.output import temporary_folder
from edge_prm.prm import PRM, load
from edge_prm.source import EMBEDDED

SEED = 20_000_007  # examples that show what a judge does; how often it is right is measured on others, below
DERIVATIONS = 3
CANDIDATES = 4
COMPARED = 60
WEAK_BELOW = 0.5


def run_demo(threads: int | None, progress: Any, show: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo, `show` its lines, and return its figures.

    Where this processor's 8-bit kernels saturate, int8 is exported with `--reduce-range`, as a user should.
    """
    from edge_prm.backends.onnx.saturation import saturates
    from edge_prm_export import export

    started = time.perf_counter()
    reduce = bool(saturates())
    with temporary_folder("edge-prm-demo-") as folder:
        bundles = {
            (name, recipe): export(
                f"{EMBEDDED}{name}",
                folder / f"{name}-{recipe}",
                recipe=recipe,
                reduce_range=reduce and recipe == "int8",
                progress=progress,
            )
            for name, recipe in (("demo", "int8"), ("demo", "fp32"), ("demo-reference", "fp32"))
        }
        prms = {key: load(bundle, threads=threads) for key, bundle in bundles.items()}
        prm = prms["demo", "int8"]
        derivations = list(generate(SEED, DERIVATIONS, mistake_rate=0.0))
        _show_scores(prm, derivations, show)
        best = _show_ranking(prm, derivations[0], show)
        facts = _compare(prms, list(generate(SEED + 1, COMPARED)))
        for opened in prms.values():
            opened.close()
    facts |= {"best": best, "reduce_range": reduce, "seconds": round(time.perf_counter() - started, 2)}
    show("")
    show(f"{facts['steps']} more steps of {COMPARED} derivations, half of them with a planted mistake:")
    show(f"  int8 is {facts['mean_difference']:.4f} from fp32 on average, {facts['max_difference']:.4f} at most")
    show(f"  verdicts that match the truth: int8 {facts['right']:.1%}, larger reference {facts['reference_right']:.1%}")
    show(f"  int8 and reference agree on {facts['agreement']:.1%} of the verdicts")
    option = ""
    if reduce:
        option = " --reduce-range"
        show("  this processor's 8-bit kernels saturate, so int8 was exported with --reduce-range (7-bit weights)")
    show(f"All of it in {facts['seconds']:.1f} s. Next: edge-prm export YOUR-CHECKPOINT --int8{option} -o prm-int8")
    return facts


def _show_scores(prm: PRM, derivations: list[Derivation], show: Callable[[str], None]) -> None:
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


def _show_ranking(prm: PRM, right: Derivation, show: Callable[[str], None]) -> int | None:
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
    """Rewards of int8, fp32 and the larger reference on the same derivations, and the truth."""
    rewards = {
        key: [reward for d in derivations for reward in prm.score(d.problem, d.steps).rewards]
        for key, prm in prms.items()
    }
    truth = [label for d in derivations for label in d.labels]
    int8, fp32, reference = rewards["demo", "int8"], rewards["demo", "fp32"], rewards["demo-reference", "fp32"]
    differences = [abs(a - b) for a, b in zip(int8, fp32, strict=True)]

    def share(verdicts: list[bool]) -> float:
        return sum(verdicts) / len(verdicts)

    return {
        "steps": len(truth),
        "mean_difference": sum(differences) / len(differences),
        "max_difference": max(differences),
        "right": share([(r >= WEAK_BELOW) == label for r, label in zip(int8, truth, strict=True)]),
        "reference_right": share([(r >= WEAK_BELOW) == label for r, label in zip(reference, truth, strict=True)]),
        "agreement": share([(a >= WEAK_BELOW) == (b >= WEAK_BELOW) for a, b in zip(int8, reference, strict=True)]),
    }
