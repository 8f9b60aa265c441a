"""The source files of the repository as test_house.py reads them: imports and definitions, by `ast`, without running."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"edge_prm": ROOT, "edge_prm_export": ROOT / "export", "edge_prm_bench": ROOT / "bench"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """An import statement: `late` in a function, `typing` under `if TYPE_CHECKING`."""

    module: str
    imported: str
    late: bool
    typing: bool


@cache
def modules() -> dict[str, ast.Module]:
    """Name -> syntax tree of every module of the three packages."""
    trees = {}
    for package, base in PACKAGES.items():
        for path in sorted((base / package).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def path_of(module: str) -> Path:
    """The file of a module."""
    path = PACKAGES[module.split(".")[0]].joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module: str, tree: ast.Module) -> list[Import]:
    """All imports of a module; `from package import module` counts as one of that module."""
    return list(_imports(module, tree, late=False, typing=False))


def _imports(module: str, node: ast.AST, *, late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for name in _imported(child):
            yield Import(module, name, late, typing)
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(module, child, late=late or isinstance(child, Function), typing=typing or guarded)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in modules() else str(node.module) for name in full]
    return []


def functions() -> list[tuple[str, int]]:
    """Place and length in lines of every function and method."""
    return [
        (f"{name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]


def undocumented(module: str, tree: ast.Module) -> list[str]:
    """Public definitions without a docstring; one in a function or under a private name is not public."""
    missing = [] if ast.get_docstring(tree) else [module]
    return missing + list(_undocumented(module, tree))


def _undocumented(place: str, node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.ClassDef, *Function.__args__)) or child.name.startswith("_"):  # type: ignore[attr-defined]
            continue
        overload = any("overload" in ast.unparse(decorator) for decorator in child.decorator_list)
        if not overload and not ast.get_docstring(child):
            yield f"{place}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _undocumented(f"{place}.{child.name}", child)


def dataclass_fields() -> list[tuple[str, int]]:
    """Place and number of fields of every dataclass."""
    return [
        (f"{name}:{node.name}", sum(isinstance(entry, ast.AnnAssign) for entry in node.body))
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    ]


def within(module: str, prefix: str) -> bool:
    """Whether a module is a package, or lies in it."""
    return module == prefix or module.startswith(f"{prefix}.")
