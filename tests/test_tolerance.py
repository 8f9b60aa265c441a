"""A bundle outside its own tolerance: refused in full precision, kept and marked when it is quantized."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from conftest import REDUCED
from tiny import opened, write_reward_head

from edge_prm.check import TRUSTED, too_coarse
from edge_prm.errors import BundleIntegrityError, CheckpointError
from edge_prm.manifest import MANIFEST_NAME, Fidelity, Manifest, Recipe, read_manifest
from edge_prm.notices import ToleranceWarning

pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')

from edge_prm_export import export, recipes
from edge_prm_export.calibration import golden
from edge_prm_export.checkpoint.head import read_head

INT8 = ["--reduce-range"] * REDUCED


@pytest.fixture
def steep(write: Callable, tmp_path: Path) -> Path:
    """A checkpoint whose head magnifies every rounding: a golden reward of 0.5 has 50 times the usual slope."""
    folder, slope = write("sigmoid"), 50
    manifest = read_manifest(export(str(folder), tmp_path / "plain", recipe="fp32"))
    middle = manifest.golden[0].reference_rewards[0]
    ((weight, bias),) = read_head(opened(folder)).layers
    shift = np.float32(np.log(middle / (1 - middle)))
    write_reward_head(folder / "reward_head.pt", slope * weight, slope * (bias - shift))
    shutil.rmtree(tmp_path / "plain")
    return folder


def test_a_quantized_bundle_outside_its_tolerance_is_kept_marked_and_said(steep: Path, tmp_path: Path) -> None:
    result = run("export", steep, *INT8, "-o", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    for part in (
        str(tmp_path / "out"),
        "int8, is too coarse for this checkpoint",
        "limit 0.06",
        "export the checkpoint",
    ):
        assert part in line
    assert result.stdout.count("\n") == 1
    fidelity = read_manifest(tmp_path / "out").fidelity
    assert fidelity is not None
    assert not fidelity.within_tolerance
    fields = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert fields["fidelity"]["within_tolerance"] is False
    shown = run("info", tmp_path / "out").stdout
    assert "not trusted" in shown
    assert "too coarse" in shown
    checked = run("check", tmp_path / "out", "--json")
    assert checked.exit_code == 1
    facts = json.loads(checked.stdout)
    assert (facts["verdict"], facts["drift"]) == ("recipe", 0)
    assert "The kernels of this device" not in facts["sentence"]


def test_the_figures_of_such_an_export_are_json(steep: Path, tmp_path: Path) -> None:
    result = run("export", steep, *INT8, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["within_tolerance"] is False
    assert facts["max_difference"] > facts["tolerance"] == 0.06


def test_the_python_call_warns_and_returns_the_folder(steep: Path, tmp_path: Path) -> None:
    with pytest.warns(ToleranceWarning, match=r"out: its recipe, int8, is too coarse .* export the checkpoint"):
        folder = export(str(steep), tmp_path / "out", reduce_range=REDUCED)
    assert folder == tmp_path / "out"


def test_the_remedy_that_is_named_helps(steep: Path, tmp_path: Path) -> None:
    assert run("export", steep, "--fp32", "-o", tmp_path / "out").exit_code == 0
    assert run("check", tmp_path / "out").exit_code == 0


def test_a_bundle_within_its_tolerance_is_marked_too(checkpoint_of: Callable, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ToleranceWarning)
        export(str(checkpoint_of("sigmoid")), tmp_path / "out", reduce_range=REDUCED)
    fields = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert fields["fidelity"]["within_tolerance"] is True
    assert "not trusted" not in run("info", tmp_path / "out").stdout
    facts = json.loads(run("check", tmp_path / "out", "--json").stdout)
    assert facts["verdict"] == TRUSTED


@pytest.mark.parametrize("force", [False, True])
def test_a_bundle_in_full_precision_outside_its_tolerance_is_a_wrong_graph(
    checkpoint_of: Callable, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    from edge_prm_export.onnx import decoder as to_onnx

    class Wrong(to_onnx.DecoderWeights):
        def attention_output(self, layer: int) -> np.ndarray:
            return super().attention_output(layer) * np.float32(0.98)

    monkeypatch.setattr(to_onnx, "DecoderWeights", Wrong)
    before = {path.name: path.read_bytes() for path in own_bundle.iterdir()}
    target = own_bundle if force else tmp_path / "out"
    result = run("export", checkpoint_of("sigmoid"), "--fp32", "-o", target, *["--force"] * force)
    refused(result, "the exported graph does not compute what the checkpoint does", "limit 0.001")
    assert {path.name: path.read_bytes() for path in own_bundle.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == [own_bundle.name]


def test_the_same_holds_for_full_precision_by_optimum(manifest_for: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both go through `with_golden`; tracing a wrong graph is not needed to see that."""

    class Text:
        def sha256(self) -> str:
            return "0" * 64

    texts = [("Q", ("a",), Text())]
    for recipe, refused_ in (("fp32", True), ("int8", False)):
        manifest = manifest_for(backend="optimum", recipe=Recipe(recipe))
        written = golden.ExportResult(manifest.recipe, {}, [[0.5]], reference="torch fp32")
        monkeypatch.setattr(golden, "_bundle_rewards", lambda *_: [[0.7]])
        if refused_:
            with pytest.raises(CheckpointError, match=r"0\.2000 from torch fp32"):
                golden.with_golden(Path(), manifest, texts, written, None)
        else:
            done = golden.with_golden(Path(), manifest, texts, written, None)
            assert done.fidelity is not None
            assert not done.fidelity.within_tolerance


def test_a_mark_that_contradicts_its_own_figures_is_damage(manifest_for: Callable[..., Manifest]) -> None:
    manifest = manifest_for(fidelity=Fidelity("numpy fp32", 2, 0.01, 0.09, 0.06))
    fields = json.loads(manifest.to_json())
    assert fields["fidelity"]["within_tolerance"] is False
    assert Manifest.from_json(json.dumps(fields), "here") == manifest
    for mark in (True, "no", 0.5):
        fields["fidelity"]["within_tolerance"] = mark
        with pytest.raises(BundleIntegrityError, match="within_tolerance"):
            Manifest.from_json(json.dumps(fields), "here")
    del fields["fidelity"]["within_tolerance"]  # as in format 1
    assert Manifest.from_json(json.dumps(fields), "here") == manifest


GGUF = [("gguf", name.lower(), False, False) for name in recipes.GGUF_TYPES]
ONNX = [
    (backend, "int8", reduce_range, clipped)
    for backend in ("onnx", "optimum")
    for reduce_range, clipped in ((True, False), (False, None), (False, True), (False, False))
]


@pytest.mark.parametrize(("backend", "name", "reduce_range", "clipped"), [*ONNX, *GGUF])
def test_every_recipe_that_is_too_coarse_has_a_remedy_that_is_another_recipe(
    manifest_for: Callable[..., Manifest], backend: str, name: str, reduce_range: bool, clipped: bool | None
) -> None:
    manifest = manifest_for(fidelity=Fidelity("numpy fp32", 2, 0.01, 0.9, 0.06))
    said = too_coarse(replace(manifest, backend=backend, recipe=Recipe(name, reduce_range)), clipped)
    assert f"its recipe, {name}, is too coarse" in said
    remedy = said.split("; ", 1)[1]
    assert ("--reduce-range" in remedy) == (backend != "gguf" and (reduce_range or clipped is not False))
    assert "--fp32" in remedy
    assert ("--gguf, " in remedy) == (backend == "gguf" and recipes.GGUF_TYPES[name.upper()].bits < 8)
