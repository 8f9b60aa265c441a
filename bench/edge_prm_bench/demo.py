"""The benchmark without a bundle: the embedded pair, demo and its larger reference, on derivations with labels."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_prm.demo.derivations import generate, plant_mistake
from edge_prm.output import temporary_folder
from edge_prm.source import EMBEDDED
from edge_prm_bench.results import Options

SEED = 30_000_001  # above all seeds of the training data
DERIVATIONS = 200
PROBLEMS, CANDIDATES = 50, 4


@contextmanager
def demo_pair(
    options: Options, export: Callable[..., Path], progress: Any
) -> Iterator[tuple[tuple[Path, ...], Options]]:
    """Yield the demo's int8 bundles, and the options with its references, and with its data where none is given.

    `export` is the exporter's function, because the benchmark does not import the exporter. `demo-fp32` is the demo in
    full precision, `demo-reference-fp32` a larger model with a two-class head. The folders are deleted at the end.
    """
    with temporary_folder("edge-prm-bench-") as folder:
        bundles = [
            export(
                f"{EMBEDDED}demo", folder / f"demo-int8{'-reduced' * reduced}", reduce_range=reduced, progress=progress
            )
            for reduced in (False, True)
        ]
        references = tuple(
            export(f"{EMBEDDED}{source}", folder / f"{source}-fp32", recipe="fp32", progress=progress)
            for source in ("demo", "demo-reference")
        )
        data = options.input.data or (
            _derivations(folder / "derivations.jsonl"),
            _candidates(folder / "candidates.jsonl"),
        )
        limit = 0 if options.input.limit is None else options.input.limit
        references = (*options.input.references, *references)
        yield (
            tuple(bundles),
            replace(options, input=replace(options.input, data=data, references=references, limit=limit)),
        )


def _derivations(path: Path) -> Path:
    """Write ProcessBench rows; half of them have a mistake."""
    rows = [
        {
            "id": f"derivation-{index}",
            "problem": derivation.problem,
            "steps": derivation.steps,
            "label": -1 if derivation.first_wrong is None else derivation.first_wrong,
        }
        for index, derivation in enumerate(generate(SEED, DERIVATIONS))
    ]
    return _write(path, rows)


def _candidates(path: Path) -> Path:
    """Write rows with several solutions of one problem, each right or wrong with equal probability."""
    rng = random.Random(SEED)
    rows = []
    for index, right in enumerate(generate(SEED + 1, PROBLEMS, mistake_rate=0.0)):
        solutions = [plant_mistake(right, rng) if rng.random() < 0.5 else right for _ in range(CANDIDATES)]
        rows.append(
            {
                "id": f"problem-{index}",
                "problem": right.problem,
                "candidates": [
                    {"text": "\n\n".join(solution.steps), "correct": solution.first_wrong is None}
                    for solution in solutions
                ],
            }
        )
    return _write(path, rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
