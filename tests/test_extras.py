"""What an extra holds comes from the package's metadata, and a missing part is named with its `pip install` line."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

import edge_prm
from edge_prm.errors import MissingExtraError
from edge_prm.extras import check_extra, missing_modules, modules_of

REQUIRES = [
    "numpy>=1.26",
    "onnx>=1.17; extra == 'export'",
    'ml_dtypes>=0.4 ; extra == "export"',
    "llama-cpp-python>=0.3; extra == 'gguf'",
    "edge-prm[export,gguf]; extra == 'all'",
    'Edge_PRM[all]; extra == "more"',
    "optimum-onnx>=0.1; extra == 'more'",
    "onnx>=1.17; extra == 'more'",
]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("export", ("onnx", "ml_dtypes")),
        ("gguf", ("llama_cpp",)),
        ("all", ("onnx", "ml_dtypes", "llama_cpp")),
        ("more", ("onnx", "ml_dtypes", "llama_cpp", "optimum.exporters.onnx")),
        ("unknown", ()),
    ],
)
def test_the_modules_of_an_extra(metadata: None, extra: str, modules: tuple[str, ...]) -> None:
    assert modules_of(extra) == modules


def test_what_is_missing_is_named_with_its_line(metadata: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "onnx" in missing_modules("all")
    with pytest.raises(MissingExtraError, match=r'onnx.* not installed; install with: pip install "edge-prm\[all\]"'):
        check_extra("all")


def test_what_is_there_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy; extra == 'x'", "click; extra == 'x'"])
    assert missing_modules("x") == []
    check_extra("x")


def test_sources_that_are_not_installed_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError("edge-prm")

    monkeypatch.setattr(importlib.metadata, "requires", fail)
    assert modules_of("export") == ()


def test_every_extra_of_pyproject_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pyproject = Path(edge_prm.__file__).parents[1] / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("an installed package has no pyproject.toml")
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    requires = [f"{line}; extra == '{extra}'" for extra, lines in extras.items() for line in lines]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)
    for extra, lines in extras.items():
        found = modules_of(extra)
        assert len(found) >= len([line for line in lines if not line.startswith("edge-prm")])
        assert all(re.fullmatch(r"[a-z_][a-z0-9_.]*", name) for name in found)
