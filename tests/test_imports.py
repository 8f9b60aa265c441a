"""What an import costs, what is public, and that torch is never asked for."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edge_prm
from edge_prm import errors

HEAVY = ("onnxruntime", "onnx", "tokenizers", "torch", "transformers", "huggingface_hub", "jinja2", "ml_dtypes", "llama_cpp", "gguf", "optimum", "edge_prm_export", "edge_prm_bench")  # fmt: skip


def loaded_after(code: str) -> set[str]:
    """Run code in an interpreter of its own and return the heavy modules it has loaded at the end."""
    script = f"{code}\nimport json, sys\nprint()\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import edge_prm; dir(edge_prm); edge_prm.__version__",
        "import edge_prm; edge_prm.load; edge_prm.PRM; edge_prm.Session; edge_prm.Trajectory; edge_prm.Score",
        "from edge_prm.trajectory import Trajectory; Trajectory.of('Q', 'a\\n\\nb')",
        "import edge_prm.cli.main",
        "import edge_prm.backends.onnx.native, edge_prm.check, edge_prm.records, edge_prm.cli.view, edge_prm.demo",
        "import edge_prm.cli.main\ntry: edge_prm.cli.main.main(['--help'])\nexcept SystemExit: pass",
        "import edge_prm.cli.main\ntry: edge_prm.cli.main.main(['export', '--help'])\nexcept SystemExit: pass",
        "import edge_prm.cli.main\ntry: edge_prm.cli.main.main(['bench', 'fidelity', '--help'])\nexcept SystemExit: pass",
        "import edge_prm\ntry: edge_prm.load('nowhere')\nexcept edge_prm.EdgePRMError: pass",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str) -> None:
    assert loaded_after(code) == set()


def test_importing_the_exporter_loads_no_engine() -> None:
    assert loaded_after("import edge_prm_export") == {"edge_prm_export"}


def test_importing_the_benchmark_loads_no_engine_and_no_torch() -> None:
    modules = (
        "suite",
        "data",
        "reference.make",
        "report.html",
        "report.tables",
        "report.pictures",
        "speed.latency",
        "baselines",
        "demo",
    )
    code = "\n".join(f"import edge_prm_bench.{name}" for name in modules)
    assert loaded_after(code) == {"edge_prm_bench"}


def test_exporting_never_loads_torch(checkpoint_of: Callable[[str], Path], bundle_of: Callable, tmp_path: Path) -> None:
    code = "from edge_prm_export import export\n" + "\n".join(
        f"export({str(checkpoint_of(head))!r}, {str(tmp_path / (head + recipe))!r}, recipe={recipe!r})"
        for head, recipe in (("sigmoid", "int8"), ("two_class", "fp32"))
    )
    assert loaded_after(code).isdisjoint({"torch", "transformers", "huggingface_hub"})


def test_scoring_loads_the_engine_and_the_tokenizer_and_no_more(bundle_of: Callable[..., Path]) -> None:
    code = f"import edge_prm\nprint(edge_prm.load({str(bundle_of())!r}).score('Q', ['a', 'b']).rewards)"
    assert loaded_after(code) == {"onnxruntime", "tokenizers"}


def test_the_command_line_scores_without_the_exporter(bundle_of: Callable[..., Path]) -> None:
    code = (
        "import io, sys\nfrom edge_prm.cli.main import main\n"
        'sys.stdin = io.TextIOWrapper(io.BytesIO(b\'{"problem": "Q", "steps": ["a"]}\'))\n'
        f"try: main(['score', {str(bundle_of())!r}, '-'])\nexcept SystemExit as end: assert not end.code"
    )
    assert loaded_after(code) == {"onnxruntime", "tokenizers"}


# the front door


def test_what_is_public_is_what_is_shown() -> None:
    assert dir(edge_prm) == sorted(edge_prm.__all__)
    assert len([name for name in edge_prm.__all__ if not name.startswith("_")]) <= 7


@pytest.mark.parametrize("name", edge_prm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(edge_prm, name) is not None


@pytest.mark.parametrize("name", [name for name in edge_prm.__all__ if not name.startswith("_")])
def test_every_public_name_is_documented(name: str) -> None:
    found = getattr(edge_prm, name)
    assert found.__doc__
    assert found.__doc__.strip()
    if isinstance(found, type):
        for member, value in vars(found).items():
            if not member.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                documented = member in ("close", "prompt", "steps", "manifest") or getattr(value, "__doc__", None)
                assert documented, f"{name}.{member}"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Scorer'"):
        edge_prm.Scorer  # noqa: B018


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from edge_prm import *", names)
    assert set(edge_prm.__all__) <= set(names)


# errors


LEAVES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", LEAVES)
def test_every_error_is_ours_and_a_builtin_too(error: type[Exception]) -> None:
    assert issubclass(error, errors.EdgePRMError)
    if error is not errors.EdgePRMError:
        builtins = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert builtins[0] not in (Exception, BaseException, object)
    assert error.__name__ in (errors.__doc__ or "")


def test_modules_say_what_they_are_for() -> None:
    root = Path(edge_prm.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.stem.startswith("train"):
            continue
        module = importlib.import_module(".".join(("edge_prm", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"))  # fmt: skip
        assert module.__doc__, path.name
