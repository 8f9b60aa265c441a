"""Which modules an extra brings, read from the package's own metadata: pyproject.toml is the one list."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

from edge_prm.errors import MissingExtraError

DISTRIBUTION = "edge-prm"
_MODULES = {
    "llama-cpp-python": "llama_cpp",
    "nvidia-ml-py": "pynvml",
    "onnxruntime-gpu": "onnxruntime",
    "optimum-onnx": "optimum.exporters.onnx",
    "scikit-learn": "sklearn",
}
"""distribution -> module, where the name of the module is not that of the distribution."""
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def modules_of(extra: str) -> tuple[str, ...]:
    """Names of the modules that `pip install "edge-prm[extra]"` brings, in the order of pyproject.toml.

    Empty where edge-prm runs from its sources without being installed: nothing says there what an extra holds.
    """
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    modules: list[str] = []
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        found = _REQUIREMENT.match(wanted)
        if found is None or extra not in _EXTRA.findall(marker):
            continue
        name, more = _normal(found[1]), found[2] or ""
        if name == DISTRIBUTION:  # an extra that holds other extras
            for other in filter(None, map(str.strip, more.split(","))):
                modules += modules_of(other)
        else:
            modules.append(_MODULES.get(name, name.replace("-", "_")))
    return tuple(dict.fromkeys(modules))


def missing_modules(extra: str) -> list[str]:
    """Names of the modules of an extra that are not installed."""
    return [name for name in modules_of(extra) if not _installed(name)]


def check_extra(extra: str) -> None:
    """MissingExtraError that names every module of an extra that is not installed."""
    if missing := missing_modules(extra):
        raise MissingExtraError(extra, missing)


def _normal(name: str) -> str:
    """The one spelling of a distribution's name: `ml_dtypes` and `ml-dtypes` are the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # of the package around it; a module without a spec
        return False
