"""References: each file is compared with the references of its own traces, and never with another model's text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from bench_runs import measure, needs, reference_of, rows_of, write_rows
from command_line import edit_manifest, refused, run

import edge_prm
from edge_prm.errors import InputError
from edge_prm.recipe import RECIPES
from edge_prm_bench.scorers import as_json, reference_scorer

needs("onnxruntime", "onnx", "tabulate")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two files with the same ids, one of them shorter."""
    return write_rows(tmp_path / "a.jsonl", rows_of(6, "pens")), write_rows(tmp_path / "b.jsonl", rows_of(4, "eggs"))


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(edge_prm, "load", fail)


def test_each_file_is_compared_with_its_own_reference(bundle: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    """Two files and two references with the same row ids: matched by id, a reward could be that of the other file."""
    references = [
        reference_of(bundle, data, tmp_path / f"r{index}", shift)
        for index, (data, shift) in enumerate(zip(two, (0.01, 0.02), strict=True))
    ]
    for order in (references, references[::-1]):
        given = [part for path in order for part in ("--reference", path)]
        facts = measure("fidelity", bundle, "--data", two[0], "--data", two[1], *given, "--threads", 1)
        rows = {row["pairing"]["data"]: row for row in facts["fidelity"]["quantization"]}
        assert set(rows) == {"a.jsonl", "b.jsonl"}
        assert rows["a.jsonl"]["difference"]["mean"]["value"] == pytest.approx(0.01)
        assert rows["b.jsonl"]["difference"]["mean"]["value"] == pytest.approx(0.02)
        assert [rows[name]["pairing"]["traces"] for name in ("a.jsonl", "b.jsonl")] == [6, 4]


def test_a_file_without_a_reference_has_no_figures_and_is_listed(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01)
    facts = measure("fidelity", bundle, "--data", two[0], "--data", two[1], "--reference", reference)
    assert [row["pairing"]["data"] for row in facts["fidelity"]["quantization"]] == ["a.jsonl"]
    assert ("b.jsonl", 4, "fidelity: no reference was made from this file") in {
        (row["data"], row["count"], row["reason"]) for row in facts["skipped"]
    }


@pytest.mark.usefixtures("no_models")
def test_a_reference_of_other_data_is_refused_before_a_model_is_loaded(
    two: tuple[Path, Path], tmp_path: Path, bundle: Path
) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01)
    for limit in ((), ("--limit", 2)):
        refused(run("bench", bundle, "--data", two[1], "--reference", reference, *limit), "was made from other data")


def test_a_reference_of_the_first_traces_limits_the_traces_that_are_compared(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01, limit=4)
    for limit, traces, beyond in (((), 4, 0), (("--limit", 3), 3, 0), (("--limit", 0), 4, 2)):
        facts = measure("fidelity", bundle, "--data", two[0], "--reference", reference, *limit)
        (row,) = facts["fidelity"]["quantization"]
        assert (row["pairing"]["traces"], row["pairing"]["skipped"]) == (traces, beyond)
        assert row["difference"]["mean"]["value"] == pytest.approx(0.01)
        counts = [row["count"] for row in facts["skipped"] if "which the reference holds" in row["reason"]]
        assert counts == [beyond] * bool(beyond)


@pytest.mark.usefixtures("no_models")
def test_an_incomplete_reference_alone_is_refused(two: tuple[Path, Path], tmp_path: Path, bundle: Path) -> None:
    reference = reference_of(bundle, two[0], tmp_path / "r", 0.01, rows=3)
    refused(run("bench", "fidelity", bundle, "--data", two[0], "--reference", reference), "is not complete")


def test_an_unusable_reference_of_several_is_a_failure_and_the_others_are_used(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    complete = reference_of(bundle, two[0], tmp_path / "complete", 0.01)
    half = reference_of(bundle, two[0], tmp_path / "half", 0.02, rows=3)
    damaged = write_rows(tmp_path / "damaged", ["{}"])
    given = [part for path in (half, damaged, complete) for part in ("--reference", path)]
    facts = measure("fidelity", bundle, "--data", two[0], *given, "--markdown", tmp_path / "x.md", exit_code=1)
    assert facts["fidelity"]["quantization"][0]["difference"]["mean"]["value"] == pytest.approx(0.01)
    assert facts["fidelity"]["noise_floor"] == []
    reasons = {failure["reason"] for failure in facts["failures"]}
    assert any("is not complete" in reason for reason in reasons)
    assert any("is not a reference file" in reason for reason in reasons)
    assert "**Failed**" in (tmp_path / "x.md").read_text(encoding="utf-8")


def test_references_of_one_name_are_distinguished_by_their_path(
    bundle: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    given = [p for i in (1, 2) for p in ("--reference", reference_of(bundle, two[0], tmp_path / f"r{i}", i / 100))]
    fidelity = measure("fidelity", bundle, "--data", two[0], *given)["fidelity"]
    (row,), (floor,) = fidelity["quantization"], fidelity["noise_floor"]
    assert row["pairing"]["reference"].endswith("r1)")
    assert floor["pairing"]["name"].endswith("r2)")


@pytest.mark.parametrize(
    ("engine", "recipe", "name", "rounding"),
    [
        ("gguf", "f32", "tiny-sigmoid fp32, gguf, KV cache in fp16", 1),
        ("optimum", "fp32", "tiny-sigmoid fp32, optimum", 0),
        ("onnx", "fp32", "tiny-sigmoid fp32, onnx", 0),
        ("gguf", "f16", None, None),
        ("gguf", "q8_0", None, None),
        ("onnx", "int8", None, None),
    ],
)
def test_a_reference_bundle_has_unrounded_weights(
    own_bundle: Path, engine: str, recipe: str, name: str | None, rounding: int | None
) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["recipe"] = json.loads(json.dumps(asdict(RECIPES[engine, recipe])))
        fields["files"]["model.gguf"] = fields["files"]["model.onnx"]

    edit_manifest(own_bundle, change)
    if name is None:
        with pytest.raises(InputError, match=f"recipe {recipe}; a reference has full precision"):
            reference_scorer(own_bundle, None)
    else:
        scorer = reference_scorer(own_bundle, None)
        assert (scorer.name, scorer.rounding) == (name, rounding)


def test_a_reference_with_another_separator_is_refused(
    two: tuple[Path, Path], bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Two that read other tokens are not comparable."""
    full = Path(shutil.copytree(bundle_of("token_class", "fp32"), tmp_path / "full"))
    edit_manifest(full, lambda fields: fields["input"].update(separator="\n\n\n"))
    result = run("bench", "fidelity", bundle_of("token_class", "int8"), "--data", two[0], "--reference", full)
    refused(result, "was made with separator '\\n\\n\\n'")


def test_a_tuple_equals_the_list_that_json_makes_of_it() -> None:
    fields = {"separator": "x", "refused": ("a", "b")}
    assert as_json(fields) == {"separator": "x", "refused": ["a", "b"]}
