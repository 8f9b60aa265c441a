"""The demo on this device: export, check, score, stream and rank must give right answers, and equal bits in any pieces.

    python .ci/demo_on_device.py int8 int4       exports the embedded checkpoint with these recipes, here
    python .ci/demo_on_device.py FOLDER ...      takes bundles of it that another machine exported

Needs edge-prm with the extras cpu and export. Prints one JSON line; where something is wrong, it exits with 1 and says
what, in a sentence on stderr.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

import edge_prm
from edge_prm.backends.onnx.saturation import saturates
from edge_prm.bundle import open_bundle
from edge_prm.check import check_bundle
from edge_prm.demo.derivations import Derivation, generate, plant_mistake
from edge_prm.source import EMBEDDED

SEED = 1_000_003  # of problems that the checkpoint was not trained on: see tests/test_demo.py
DERIVATIONS = 16
LEAST_RIGHT = 0.9
WEAK_BELOW = 0.5
TOKENS = 70
CUTS = ((1,), (2,), (3,), (16,), (17,), (33,), (69,), (5, 6, 8, 11, 31, 32), (1, 2, 3, 4, 47, 67))
"""Where the ids of a text are cut: lone tokens, incomplete blocks of 4 rows and of 16."""


class Wrong(Exception):
    """What is wrong, in a sentence."""


def main(arguments: Sequence[str]) -> None:
    """Try each recipe or bundle, print the facts, and exit with 1 at the first thing that is wrong."""
    if not arguments:
        sys.exit("demo_on_device.py: name a recipe (int8, int4), or the folder of a bundle")
    try:
        bundles = [tried(argument) for argument in arguments]
    except (Wrong, edge_prm.EdgePRMError) as error:
        sys.exit(f"demo_on_device.py: {error}")
    versions = {"python": platform.python_version(), "onnxruntime": version("onnxruntime"), "numpy": version("numpy")}
    print(json.dumps({"machine": platform.machine(), **versions, "bundles": bundles}))


def tried(argument: str) -> dict[str, object]:
    """The facts of a bundle, exported here unless `argument` is its folder; Wrong with what is wrong."""
    if Path(argument).is_dir():
        return {"bundle": Path(argument).name, "exported": "elsewhere", **facts_of(Path(argument))}
    from edge_prm_export import export

    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        reduce_range = argument == "int8" and bool(saturates())
        folder = export(f"{EMBEDDED}demo", Path(work) / "prm", recipe=argument, reduce_range=reduce_range)
        seconds = round(time.perf_counter() - started, 1)
        return {"bundle": argument, "exported": "here", "export_seconds": seconds, **facts_of(folder)}


def facts_of(folder: Path) -> dict[str, object]:
    """Check a bundle, score with it, stream, cut and rank; the facts, or Wrong."""
    started = time.perf_counter()
    check = check_bundle(open_bundle(folder))
    if not check.trusted:
        raise Wrong(f"edge-prm check of {folder.name}: {check.sentence}")
    derivations = list(generate(SEED, DERIVATIONS))
    with edge_prm.load(folder, threads=1) as prm:
        right = share_right(prm, derivations)
        for derivation in derivations[: DERIVATIONS // 4]:
            stream(prm, derivation)
        cut(prm)
        rank(prm, next(d for d in derivations if d.first_wrong is None))
    return {
        **{name: getattr(check, name) for name in ("mean_difference", "max_difference", "device_drift")},
        "incremental_difference": check.incremental_difference,
        "right": right,
        "seconds": round(time.perf_counter() - started, 1),
    }


def share_right(prm: edge_prm.PRM, derivations: Sequence[Derivation]) -> float:
    """The share of steps whose verdict is the truth."""
    verdicts = [reward >= WEAK_BELOW for d in derivations for reward in prm.score(d.problem, d.steps).rewards]
    truth = [label for d in derivations for label in d.labels]
    share = sum(a == b for a, b in zip(verdicts, truth, strict=True)) / len(truth)
    if share < LEAST_RIGHT:
        raise Wrong(f"{share:.1%} of {len(truth)} verdicts are right, and {LEAST_RIGHT:.0%} is the least")
    return share


def stream(prm: edge_prm.PRM, derivation: Derivation) -> None:
    """Push the steps, with a branch and a wrong step that is trimmed again in between: the bits of one call."""
    steps, last = derivation.steps, len(derivation.steps) - 1
    whole = prm.score(derivation.problem, steps).rewards
    with prm.session(derivation.problem) as session:
        for index, step in enumerate(steps):
            with session.branch() as other:
                other.push("So 7 + 7 = 14")
            session.push("So 3 * 3 = 6")
            session.trim(index)
            session.push(step, last=index == last)
        same(session.rewards, whole, f"the steps of {derivation.problem!r}, pushed one by one,")


def cut(prm: edge_prm.PRM) -> None:
    """Run random token ids in pieces: the bits of one run, at every token."""
    ids = np.random.default_rng(5).integers(0, prm.manifest.architecture.vocabulary, TOKENS)
    whole = prm.model.start().extend(ids, range(TOKENS))
    for cuts in CUTS:
        sequence = prm.model.start()
        pieces = [sequence.extend(piece, range(len(piece))) for piece in np.split(ids, cuts)]
        same(np.concatenate(pieces).tolist(), whole.tolist(), f"the tokens of a text, cut at {cuts},")


def rank(prm: edge_prm.PRM, right: Derivation) -> None:
    """Rank three wrong candidates and a right one: the right one wins, and each has the bits of a call of its own."""
    rng = random.Random(SEED)
    candidates = [plant_mistake(right, rng).steps for _ in range(3)]
    candidates.insert(2, right.steps)
    ranking = prm.rank(right.problem, candidates)
    if ranking.best != 2:
        raise Wrong(f"rank took candidate {ranking.best} of {right.problem!r}, and only candidate 2 is right")
    for index, (steps, ranked) in enumerate(zip(candidates, ranking.rewards, strict=True)):
        whole = prm.score(right.problem, steps).rewards
        same(ranked or (), whole, f"the steps of candidate {index} of {right.problem!r}, when ranked,")


def same(found: Sequence[float], whole: Sequence[float], what: str) -> None:
    """Wrong where a reward is not the same bits."""
    if tuple(found) != tuple(whole):
        most = max((abs(a - b) for a, b in zip(found, whole)), default=float("nan"))
        raise Wrong(f"{what} have other rewards than in one call: they differ by up to {most:.3g}, and must be equal")


if __name__ == "__main__":
    main(sys.argv[1:])
