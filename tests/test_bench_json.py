"""The JSON document of `edge-prm bench`: its keys and types are an interface, and written here as data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_runs import measure, needs, reference_of, write_rows
from json_layout import NUMBER, OR_NULL, problems

from edge_prm_bench.results import SCHEMA, Environment, Results
from edge_prm_bench.speed.device import describe_device

needs("onnxruntime", "onnx", "tabulate")

ESTIMATE = {"value": (*NUMBER, OR_NULL), "low": (*NUMBER, OR_NULL), "high": (*NUMBER, OR_NULL)}
TIMING = {"best": NUMBER, "p50": NUMBER, "p95": NUMBER, "worst": NUMBER, "runs": int}
RANGE = {"p50": NUMBER, "low": NUMBER, "high": NUMBER}
PAIRING = {"name": str, "reference": str, "data": str, "traces": int, "rewards": int, "skipped": int, "own": int}
AGREEMENT = {"spearman": ESTIMATE, "kendall": ESTIMATE, "best": ESTIMATE}
QUANTIZATION = {
    "pairing": PAIRING,
    "difference": {"mean": ESTIMATE, "p99": ESTIMATE, "maximum": NUMBER},
    "agreement": AGREEMENT,
    "verdicts": {"threshold": NUMBER, "flip_rate": ESTIMATE, "first_weak": ESTIMATE},
    "by_position": [{"start": int, "end": int, "rewards": int, "mean": ESTIMATE}],
}
ENERGY = {"joules": NUMBER, "seconds": NUMBER, "source": str}
LIMIT = {"kind": str, "device": str, "gops": NUMBER}
SPEED = {
    "load": {"warm": TIMING, "cold": (TIMING, OR_NULL)},
    "prefill": [{"tokens": int, "tokens_per_second": NUMBER, "timing": TIMING}],
    "push": ({"tokens": int, "first": TIMING, "last": TIMING, "growth": NUMBER, "computed_beyond_new": int}, OR_NULL),
    "rank": (
        {"candidates": int, "shared": TIMING, "alone": TIMING, "faster": RANGE, "computed": int, "needed": int,
         "one_by_one": int},
        OR_NULL,
    ),
    "peak_gb": {"*": (*NUMBER, OR_NULL)}, "device_gb": {"*": (*NUMBER, OR_NULL)},
    "fixed": {
        "tokens": int, "tokens_per_second": NUMBER, "share_of_limit": (*NUMBER, OR_NULL),
        "threads_sweep": {"*": NUMBER}, "energy": (ENERGY, OR_NULL), "limit": (LIMIT, OR_NULL),
    },
}  # fmt: skip
GOLDEN = {"reference": str, "mean_difference": NUMBER, "max_difference": NUMBER, "...": object}
DOCUMENT = {
    "schema": str,
    "environment": {
        "device": {
            "machine": str,
            "processor": {"name": str, "instructions": [str], "cores": int, "governor": (str, OR_NULL)},
            "memory_gb": (*NUMBER, OR_NULL), "system": str, "power_mode": (str, OR_NULL), "versions": {"*": str},
        },
        "threads": int, "gemm_gops": (*NUMBER, OR_NULL),
        "throttling": ({"gops_before": NUMBER, "gops_after": NUMBER, "thermal_events": (int, OR_NULL)}, OR_NULL),
        "cards": {
            "*": {"name": str, "memory_gb": (*NUMBER, OR_NULL), "driver": (str, OR_NULL), "cuda": (str, OR_NULL)}
        },
    },
    "bundles": [
        {"name": str, "source": str, "recipe": str, "head": str, "size_gb": NUMBER, "golden": (GOLDEN, OR_NULL),
         "speed": (SPEED, OR_NULL), "device": str}
    ],
    "fidelity": {
        "quantization": [QUANTIZATION], "noise_floor": [QUANTIZATION],
        "capability": [{"pairing": PAIRING, "agreement": AGREEMENT, "steps": ESTIMATE, "order": ESTIMATE}],
    },
    "quality": {
        "steps": [
            {
                "name": str, "sample": {"data": str, "traces": int, "erroneous": int, "own": int},
                "threshold": {"value": NUMBER, "fitted_on": str},
                "f1": {"value": ESTIMATE, "accuracy_erroneous": NUMBER, "accuracy_correct": NUMBER},
                "auc": {"value": ESTIMATE, "steps": int},
            }
        ],
        "best_of_n": [
            {
                "name": str, "data": str, "aggregate": str, "problems": int,
                "points": [{"n": int, "chosen": ESTIMATE, "majority": (*NUMBER, OR_NULL), "random": NUMBER,
                            "oracle": NUMBER}],
                "incomplete": int, "small": int,
            }
        ],
    },
    "baselines": [
        {"name": str, "prefill": {"*": NUMBER}, **dict.fromkeys(
            ("size_gb", "peak_gb", "mean", "p99", "spearman"), (*NUMBER, OR_NULL))}
    ],
    "skipped": [{"data": str, "by": str, "count": int, "reason": str, "examples": [str]}],
    "failures": [{"name": str, "part": str, "reason": str}],
    "notes": [str],
}  # fmt: skip
"""Keys and types, as `json_layout` reads them."""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    steps = [{"id": i, "problem": f"P {i}", "steps": ["a", "b"], "label": i % 2 - 1} for i in range(4)]
    several = {
        "problem": "Q",
        "candidates": [{"text": "1 + 0 = 1\nA: 1", "correct": True}, {"text": "A: 2", "correct": False}],
    }
    return write_rows(tmp_path / "data.jsonl", [*steps, several, "{"])


def test_the_document_has_these_keys_and_types(bundle: Path, rows: Path, tmp_path: Path) -> None:
    references = [
        reference_of(bundle, rows, tmp_path / "fp32", 0.01),
        reference_of(bundle, rows, tmp_path / "bf16", 0.02, dtype="bf16"),
        reference_of(bundle, rows, tmp_path / "other", 0.03),
    ]
    lines = references[2].read_text(encoding="utf-8").splitlines(keepends=True)
    header = json.loads(lines[0]) | {"checkpoint": "other", "checkpoint_sha256": "f" * 64}
    references[2].write_text(json.dumps(header) + "\n" + "".join(lines[1:]), encoding="utf-8")
    peer = write_rows(tmp_path / "peer", [{"peer": "other engine", "64": 1.5, "mean": 0.1}])
    given = [part for path in references for part in ("--reference", path)]
    timed = ("--lengths", "64", "--runs", 2, "--sweep", "1", "--threads", 1)
    facts = measure(bundle, tmp_path / "nowhere", "--data", rows, *given, "--peer", peer, *timed, exit_code=1)
    assert problems(facts, DOCUMENT) == []
    for group, table in (
        ("fidelity", "quantization"), ("fidelity", "noise_floor"), ("fidelity", "capability"), ("quality", "steps"),
        ("quality", "best_of_n"),
    ):  # fmt: skip
        assert facts[group][table], f"{table} is empty, so its types are not tested"
    assert all(facts[name] for name in ("bundles", "baselines", "skipped", "failures", "notes"))
    assert facts["bundles"][0]["speed"]


def test_a_key_or_type_that_changes_is_found() -> None:
    document = Results(Environment(describe_device(), 1)).as_dict()
    assert problems(document, DOCUMENT) == []
    assert problems(document | {"more": 1}, DOCUMENT) == ["$.more is new"]
    assert problems(document | {"schema": 3}, DOCUMENT) == ["$.schema is int, not str"]
    del document["notes"]
    assert problems(document, DOCUMENT) == ["$.notes is missing"]


def test_the_document_is_versioned_and_holds_no_nan() -> None:
    environment = Environment(describe_device(), 1, gemm_gops=float("nan"))
    document = replace(Results(environment), notes=("a note",)).as_dict()
    assert document["schema"] == SCHEMA == "edge-prm-bench/3"
    assert json.loads(json.dumps(document, allow_nan=False))["environment"]["gemm_gops"] is None
