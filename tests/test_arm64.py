"""The demo as 64-bit Arm: `.ci/demo_on_device.py` finds what is wrong, and `.ci/arm64` never passes without running it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_prm.prm import PRM

ROOT = Path(__file__).parent.parent
emulating = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("bash") is None,
    reason="the emulator is for Linux on x86",
)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    pytest.importorskip("onnxruntime", reason='pip install "edge-prm[cpu]"')
    spec = importlib.util.spec_from_file_location("demo_on_device", ROOT / ".ci" / "demo_on_device.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason='pip install "edge-prm[export]"')
    from edge_prm_export import export

    reduce_range = bool(program.saturates())
    folder = tmp_path_factory.mktemp("arm64") / "int8"
    return export(f"{program.EMBEDDED}demo", folder, recipe="int8", reduce_range=reduce_range)


def test_the_demo_passes_on_this_device(program: ModuleType, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.main([str(bundle)])
    facts = json.loads(capsys.readouterr().out)
    assert facts["machine"] == platform.machine()
    assert [(entry["bundle"], entry["exported"]) for entry in facts["bundles"]] == [("int8", "elsewhere")]
    assert facts["bundles"][0]["right"] >= program.LEAST_RIGHT
    assert facts["bundles"][0]["incremental_difference"] == 0


def other_bits_in_short_runs(rewards: np.ndarray, tokens: int) -> np.ndarray:
    return np.nextafter(rewards, np.float32(2)) if tokens % 4 else rewards


def the_contrary(rewards: np.ndarray, tokens: int) -> np.ndarray:
    return 1 - rewards


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (other_bits_in_short_runs, "have other rewards than in one call|step by step"),
        (the_contrary, "cannot be trusted"),
    ],
)
def test_kernels_that_are_wrong_end_the_demo_with_a_sentence(
    program: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any], said: str
) -> None:
    from edge_prm.backends.onnx.native import OnnxModel

    run = OnnxModel.run
    monkeypatch.setattr(OnnxModel, "run", lambda self, ids, *rest: kernel(run(self, ids, *rest), len(ids)))
    with pytest.raises(SystemExit, match=said):
        program.main([str(bundle)])


def test_bits_that_depend_on_pieces_are_found_although_the_check_passes(program: ModuleType) -> None:
    from fake_backend import FakeModel

    class Uneven:
        """A sequence whose rewards have another last bit after a cut at 17."""

        def __init__(self) -> None:
            self.inner, self.cut = FakeModel().start(), False

        def extend(self, ids: np.ndarray, read_at: range) -> np.ndarray:
            rewards = self.inner.extend(ids, read_at)
            self.cut = self.cut or len(ids) == 17
            return np.nextafter(rewards, np.float32(2)) if self.cut else rewards

    architecture = SimpleNamespace(vocabulary=400)
    manifest = SimpleNamespace(architecture=architecture)
    prm = SimpleNamespace(model=SimpleNamespace(start=Uneven), manifest=manifest)
    with pytest.raises(
        program.Wrong, match=r"cut at \(17,\), have other rewards than in one call: they differ by up to "
    ):
        program.cut(prm)


def test_verdicts_that_are_not_the_truth_are_found(program: ModuleType) -> None:
    class Trusting:
        """Every step is right."""

        @staticmethod
        def score(problem: str, steps: tuple[str, ...]) -> SimpleNamespace:
            return SimpleNamespace(rewards=(1.0,) * len(steps))

    with pytest.raises(program.Wrong, match=r"% of \d+ verdicts are right, and 90% is the least"):
        program.share_right(Trusting, list(program.generate(program.SEED, 4)))


def test_a_ranking_that_takes_a_wrong_candidate_is_found(
    program: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_prm import load

    right = next(d for d in program.generate(program.SEED, 9) if d.first_wrong is None)
    with load(bundle) as prm:
        rank = PRM.rank
        monkeypatch.setattr(PRM, "rank", lambda self, problem, steps: rank(self, problem, steps[::-1]))
        with pytest.raises(program.Wrong, match="only candidate 2 is right"):
            program.rank(prm, right)


def test_the_demo_without_a_bundle_says_what_to_name(program: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"name a recipe \(int8, int4\), or the folder of a bundle"):
        program.main([])


@emulating
def test_a_download_that_is_not_possible_is_a_sentence_and_no_pass(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in {"apt-get": "echo no network >&2; exit 100", "dpkg": "echo amd64"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n", encoding="ascii")
        (programs / name).chmod(0o755)
    done = arm64([str(tmp_path / "cache")], {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("arm64: FAILED: the package lists of Debian for ")
    assert done.stderr.count("\n") == 1
    assert "no network" in (tmp_path / "cache" / "log").read_text(encoding="ascii")


@emulating
def test_a_cache_must_be_named() -> None:
    done = arm64([], {})
    assert (done.returncode, done.stderr) == (1, "arm64: FAILED: name the folder of the cache: .ci/arm64 CACHE\n")


def arm64(arguments: list[str], changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / ".ci" / "arm64"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **changes}, timeout=60)


def test_ci_runs_it() -> None:
    assert 'bash .ci/arm64 "' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
