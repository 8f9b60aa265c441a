"""A new family, convention, head, recipe, engine, row format or aggregate is what CONTRIBUTING says: a row of a table.

Each test adds one to the tables and nothing else, and uses it through the public functions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REDUCED, need_engine
from fake_backend import FakeModel
from tiny import random_tensors, set_config, write_safetensors

import edge_prm
from edge_prm.aggregate import AGGREGATES
from edge_prm.backends import EngineOptions
from edge_prm.backends.gguf.layout import LAYOUTS, Layout
from edge_prm.bundle import Bundle, open_bundle
from edge_prm.check import check_bundle
from edge_prm.head import HEADS, HeadKind
from edge_prm.prm import PRM
from edge_prm.recipe import ENGINES, RECIPES, Engine
from edge_prm.records import Candidate, Record, formats, read_records
from edge_prm.records.answers import Read
from edge_prm_export.checkpoint import head as checkpoint_head
from edge_prm_export.checkpoint.config import FAMILIES, DecoderSpec, Shapes
from edge_prm_export.checkpoint.conventions import CONVENTIONS, Convention, Pieces

pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')

PROMPT, STEPS = "How many eggs does she sell?", ["Janet has 16 eggs.", "She eats 3.", "So she sells 13."]


def exported(source: Path, target: Path, **options: Any) -> Path:
    need_engine("gguf" if options.get("gguf") else "onnx")
    from edge_prm_export import export

    return export(str(source), target, **options)


def rewards(bundle: Path) -> tuple[float, ...]:
    with edge_prm.load(bundle) as prm:
        return tuple(prm.score(PROMPT, STEPS).rewards)


@pytest.mark.parametrize("gguf", [False, True])
def test_a_family_is_a_function_and_a_row(
    monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], tmp_path: Path, gguf: bool
) -> None:
    options = {"gguf": True, "recipe": "fp32"} if gguf else {"recipe": "int8", "reduce_range": REDUCED}
    known = rewards(exported(write(), tmp_path / "known", **options))

    def toy(config: Any, shapes: Shapes, name: str) -> DecoderSpec:
        return replace(FAMILIES["qwen2"]({**config, "model_type": "qwen2"}, shapes, name), family="toy")

    monkeypatch.setitem(FAMILIES, "toy", toy)
    monkeypatch.setitem(LAYOUTS, "toy", Layout("qwen2", qkv_bias=True))
    checkpoint = set_config(tmp_path / "checkpoint", model_type="toy")
    assert rewards(exported(checkpoint, tmp_path / "new", **options)) == known


def test_a_convention_is_a_row(monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], tmp_path: Path) -> None:
    row = Convention("toy", "token_pair", "", "tags", Pieces(" !", ": ", "\n"), labels=("+", "-"), aggregate="mean")
    monkeypatch.setitem(CONVENTIONS, "toy", row)
    bundle = exported(write("none"), tmp_path / "bundle", recipe="fp32", format="toy")
    with edge_prm.load(bundle) as prm:
        assert (prm.manifest.provenance.convention, prm.manifest.head.tokens) == ("toy", ("+", "-"))
        score = prm.score(PROMPT, STEPS)
        assert score.score == pytest.approx(sum(score.rewards) / 3)
    spelled = {"token_pair": ("+", "-"), "separator": " !", "between": ": "}
    assert rewards(exported(tmp_path / "checkpoint", tmp_path / "spelled", recipe="fp32", **spelled)) == score.rewards


def test_a_head_kind_is_a_row_its_reader_and_its_convention(
    monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], tmp_path: Path
) -> None:
    def read(checkpoint: Any) -> checkpoint_head.Head:
        return checkpoint_head.Head("toy", ((checkpoint.tensor("judge.weight"), checkpoint.tensor("judge.bias")),))

    monkeypatch.setitem(HEADS, "toy", HeadKind(outputs=1, tokens=0, aggregate="prod"))
    monkeypatch.setitem(checkpoint_head.HEAD_READERS, "judge.weight", read)
    monkeypatch.setitem(
        CONVENTIONS, "toy", Convention("toy", "toy", "judge.weight", "raw", Pieces("\n\n"), aggregate="")
    )
    checkpoint = write()
    sigmoid = rewards(exported(checkpoint, tmp_path / "known", recipe="fp32"))
    from edge_prm_export.checkpoint.files import open_checkpoint
    from edge_prm_export.checkpoint.head import read_head

    ((weight, bias),) = read_head(open_checkpoint(str(checkpoint))).layers
    (checkpoint / "reward_head.pt").unlink()
    tensors = random_tensors(json.loads((checkpoint / "config.json").read_text()), 0)
    write_safetensors(checkpoint / "model.safetensors", tensors | {"judge.weight": weight, "judge.bias": bias})
    bundle = exported(checkpoint, tmp_path / "new", recipe="fp32")
    with edge_prm.load(bundle) as prm:
        assert (prm.manifest.head.kind, prm.manifest.head.default_aggregate) == ("toy", "prod")
    assert rewards(bundle) == sigmoid


def test_a_recipe_is_a_row_and_its_linears(
    monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], tmp_path: Path
) -> None:
    need_engine("onnx")
    from edge_prm_export.onnx.floats import FloatLinears
    from edge_prm_export.onnx.recipes import LINEARS

    monkeypatch.setitem(RECIPES, ("onnx", "toy"), replace(RECIPES["onnx", "fp32"], name="toy"))  # type: ignore[arg-type]
    monkeypatch.setitem(LINEARS, "toy", lambda graph, recipe: FloatLinears(graph))
    checkpoint = write()
    bundle = exported(checkpoint, tmp_path / "new", recipe="toy")
    assert rewards(bundle) == rewards(exported(checkpoint, tmp_path / "known", recipe="fp32"))
    assert check_bundle(open_bundle(bundle)).device_drift == 0


def test_an_engine_is_a_module_a_row_and_its_recipes(
    monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path, manifest_for: Callable[..., Any]
) -> None:
    opened: list[EngineOptions] = []

    def load_model(bundle: Bundle, options: EngineOptions) -> FakeModel:
        opened.append(options)
        return FakeModel()

    module = ModuleType("toy_engine")
    module.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_engine", module)
    monkeypatch.setitem(ENGINES, "toy", Engine("toy_engine", ("tokenizer.json",), ()))
    recipe = replace(RECIPES["onnx", "fp32"], engine="toy")
    manifest = manifest_for(recipe=recipe)
    with PRM(Bundle(tokenizer_file.parent, manifest), EngineOptions(options={"own": 1})) as prm:
        ours = prm.score(PROMPT, STEPS).rewards
    with PRM(Bundle(tokenizer_file.parent, manifest), model=FakeModel()) as prm:
        assert prm.score(PROMPT, STEPS).rewards == ours
    assert dict(opened[0].options) == {"own": 1}


def test_a_row_format_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch, rows: Callable[..., Path]) -> None:
    def read(row: Any) -> Read:
        return Read(row["riddle"], (Candidate(row["thoughts"]),))

    toy = formats.Format("toy", lambda row: "riddle" in row, read)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, toy))
    (record,) = read_records(rows({"riddle": PROMPT, "thoughts": STEPS}))
    assert isinstance(record, Record)
    assert (record.format, record.prompt, record.candidates[0].steps) == ("toy", PROMPT, STEPS)


def test_an_aggregate_is_a_row(monkeypatch: pytest.MonkeyPatch, prm: PRM) -> None:
    monkeypatch.setitem(AGGREGATES, "toy", max)
    score = prm.score(PROMPT, STEPS)
    assert prm.score(PROMPT, STEPS, aggregate="toy").score == max(score.rewards)
