"""The documents against the program, the tree and each other: links, options, public names, folders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

import edge_prm
from edge_prm import errors
from edge_prm.aggregate import AGGREGATES
from edge_prm.cli.main import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
COMMAND_LINE = (DOCS / "command-line.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGES = ("edge_prm", "export", "bench")
"""Folders of the tree that are described down to the last one; the others are one line each."""
FOREIGN = {"--resolution", "--evaluate", "--folder", "--tiny", "--minutes"}
"""Options of other programs that the documents show."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {re.sub(r" ", "-", heading.strip()) for heading in plain}


def links(path: Path) -> Iterator[tuple[str, str]]:
    """(file, anchor) of each relative link of a page, both as they are written."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = unquote(target).partition("#")
            yield file, anchor


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_relative_link_leads_to_a_file_and_an_anchor_that_exist(path: Path) -> None:
    for file, anchor in links(path):
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name(path)} links to {file}"
        assert not anchor or anchor in anchors(target), f"{name(path)} links to {file}#{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_pages_of_the_site_link_to_pages_of_the_site_only(path: Path) -> None:
    assert all((path.parent / file).resolve().is_relative_to(DOCS) for file, _ in links(path) if file)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(path: Path) -> None:
    rows = 0
    for line in without_code(path.read_text(encoding="utf-8")).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0  # GitHub reads a | in code as an end
        assert not (rows and cells) or cells == rows, line
        rows = cells


def test_every_page_is_in_the_navigation_and_on_the_index() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in PAGES)
    assert {file for file, _ in links(DOCS / "index.md")} == set(listed) - {"index.md"}


def test_the_pages_that_the_readme_promises_are_linked_from_it() -> None:
    linked = {file for file, _ in links(ROOT / "README.md")}
    assert {"CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff"} <= linked


def commands(group: click.Group, path: str = "edge-prm") -> Iterator[tuple[str, click.Command]]:
    for part, command in group.commands.items():
        yield f"{path} {part}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {part}")


def options_of_the_program() -> set[str]:
    parameters = [*main.params, *(parameter for _, command in commands(main) for parameter in command.params)]
    found = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    return {option for option in found if option.startswith("--")} | {"--help"}


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    for command in main.commands:
        assert f"`edge-prm {command}`" in COMMAND_LINE
    bench = main.commands["bench"]
    assert isinstance(bench, click.Group)
    assert all(f"`{part}`" in COMMAND_LINE for part in bench.commands)


def test_every_option_is_on_the_page_of_the_command_line() -> None:
    described = set(re.findall(r"`(--[a-z][a-z0-9-]*)`", COMMAND_LINE))
    assert options_of_the_program() - described == set()


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name)
def test_every_option_that_a_document_names_exists(path: Path) -> None:
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", path.read_text(encoding="utf-8")))
    assert used - FOREIGN - options_of_the_program() == set()


def test_the_exit_codes_are_those_of_the_program() -> None:
    from edge_prm import exit_codes

    codes = {value for key, value in vars(exit_codes).items() if key.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", COMMAND_LINE, re.MULTILINE)} == codes


def test_every_aggregate_is_described() -> None:
    assert all(f"`{aggregate}`" in COMMAND_LINE for aggregate in AGGREGATES)


API = (DOCS / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("public", sorted(set(edge_prm.__all__) - {"__version__", "errors"}))
def test_every_public_name_is_on_the_page_of_the_api(public: str) -> None:
    assert re.search(rf"\b{public}\b", API)


@pytest.mark.parametrize("owner", [edge_prm.PRM, edge_prm.Session, edge_prm.Score])
def test_every_public_member_is_on_the_page_of_the_api(owner: type) -> None:
    for member, _ in inspect.getmembers(owner, lambda value: inspect.isfunction(value) or isinstance(value, property)):
        assert member.startswith("_") or f"{owner.__name__}.{member}" in API, member


@pytest.mark.parametrize("method", ["score", "score_many", "rank", "session"])
def test_the_page_of_the_api_has_the_arguments_of_each_method(method: str) -> None:
    written = re.search(rf"^`prm\.{method}\((.*?)\) -> ", API, re.MULTILINE)
    assert written
    names = re.findall(r"(\w+)(?:=[^,]+)?(?:,|$)", re.sub(r"\([^)]*\)", "", written[1]))
    assert names == [name for name in inspect.signature(getattr(edge_prm.PRM, method)).parameters if name != "self"]


def test_the_page_of_the_api_has_the_arguments_of_load() -> None:
    written = re.search(r"^`edge_prm\.load\((.*?)\) -> PRM`", API, re.MULTILINE)
    assert written
    names = re.findall(r"(\w+)(?:=[^,]+)?(?:,|$)", written[1])
    assert names == list(inspect.signature(edge_prm.load).parameters)


def test_the_table_of_errors_is_the_tree_of_errors() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", API.split("## Errors")[1], re.MULTILINE))
    found = {
        key: kind for key, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
    }
    assert set(rows) == set(found) - {"EdgePRMError"}
    for key, parents in rows.items():
        wanted = [base.__name__ for base in found[key].__bases__ if base is not errors.EdgePRMError]
        assert parents.split(", ") == wanted, key


def tree() -> dict[str, int]:
    """Folder -> depth, of the tree in CONTRIBUTING.md."""
    block = CONTRIBUTING.split("## The tree")[1].split("```")[1]
    folders: dict[str, int] = {}
    parents: list[tuple[int, str]] = []
    for line in block.strip("\n").splitlines():
        indent = len(line) - len(line.lstrip())
        folder, _, words = line.strip().partition("/ ")
        assert words.strip(), f"{line!r} does not say what is in it"
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = "/".join([*(part for _, part in parents), folder])
        parents.append((indent, folder))
        folders[path] = indent
    return folders


def test_the_tree_is_the_tree_on_the_disk() -> None:
    described = set(tree())
    for folder in described:
        assert (ROOT / folder).is_dir(), folder
    for package in PACKAGES:
        packages = {name(path.parent) for path in (ROOT / package).rglob("__init__.py")}
        missing = packages - described
        assert not missing, f"not in the tree of CONTRIBUTING.md: {sorted(missing)}"


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name)
def test_every_file_of_the_repository_that_a_document_names_exists(path: Path) -> None:
    folders = "edge_prm|export|bench|tests|docs|examples|benchmarks|\\.ci"
    for file in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*)", path.read_text(encoding="utf-8")):
        assert (ROOT / file.rstrip(".")).exists(), f"{name(path)} names {file}"


def test_each_row_of_the_table_of_extensions_names_a_symbol_that_is_in_its_file() -> None:
    table = CONTRIBUTING.split("## To add something")[1].split("\n## ")[0]
    pairs = re.findall(r"`((?:edge_prm|export)/[\w./]+\.py)`: [^.|`]*`([A-Z_a-z]+)`", table)
    assert len(pairs) >= 5
    for file, symbol in pairs:
        assert re.search(rf"\b{symbol}\b", (ROOT / file).read_text(encoding="utf-8")), f"{file} has no {symbol}"


def test_no_document_names_a_place_of_one_machine() -> None:
    places = re.compile(r"(?<![\w.])/(?:root|work|home|tmp|opt|mnt)/")
    assert not [name(path) for path in DOCUMENTS if places.search(path.read_text(encoding="utf-8"))]
