"""What the README says can be done, and what belongs on a front page."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REDUCED

from edge_prm.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 900


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The code blocks of a page in a language, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_set_up_is_the_first_bash_block_and_exactly_two_commands() -> None:
    block = blocks("bash")[0]
    assert block in README.split("## Set up")[1].split("\n## ")[0]
    install, test = block.splitlines()
    assert install.endswith("edge-prm demo")
    assert test.endswith("python -m pytest")


def test_a_front_page_is_read_in_two_minutes() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_front_page_says_first_what_it_is_and_keeps_its_order() -> None:
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    wanted = ["Set up", "Use", "Which bundle for which device", "Speed", "Fidelity", "Limits", "Links"]
    assert headings == wanted
    assert "**Result:**" in README.split("## ")[0]
    assert README.rstrip().endswith("MIT licence.")


def test_the_python_example_has_six_lines_and_the_shell_example_four_commands() -> None:
    (program,) = blocks("python")
    assert len([line for line in program.splitlines() if line.strip()]) == 6
    commands = blocks("bash")[1].splitlines()
    assert len(commands) == 4
    assert all(command.startswith("edge-prm ") for command in commands)


def run(command: str) -> None:
    """Run a command of the README on the embedded checkpoint, with 7-bit weights where this processor needs them."""
    arguments = ["demo" if "ReasonFlux" in word else word for word in shlex.split(command, comments=True)[1:]]
    if arguments[0] == "export" and REDUCED:
        arguments.append("--reduce-range")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (command, result.output)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the bundle of the README's first command and the files that the examples name."""
    pytest.importorskip("onnxruntime", reason='bundles need onnxruntime: pip install "edge-prm[cpu]"')
    pytest.importorskip("ml_dtypes", reason='exports need ml_dtypes: pip install "edge-prm[export]"')
    here = tmp_path_factory.mktemp("readme")
    row = {"problem": "What is 2 + 3 * 4?", "steps": ["3 * 4 = 12", "2 + 12 = 14"]}
    (here / "traces.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    row = {"problem": "What is 2 + 3 * 4?", "candidates": ["3 * 4 = 12\n\n2 + 12 = 14", "2 + 3 = 5\n\n5 * 4 = 20"]}
    (here / "candidates.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run(blocks("bash")[1].splitlines()[0])
        yield here


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md", "docs/api.md"])
def test_the_python_examples_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for program in blocks("python", page):
        exec(compile(program, page, "exec"), {})
    if page != "docs/api.md":
        assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("folder")
def test_the_four_commands_run() -> None:
    commands = blocks("bash")[1].splitlines()
    assert "export" in commands[0]  # the fixture has run it
    for command in commands[1:]:
        run(command)


def test_speed_and_fidelity_have_four_rows_and_name_the_hardware() -> None:
    for heading in ("Speed", "Fidelity"):
        section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert len(re.findall(r"^\|", section, re.MULTILINE)) == 2 + 4  # a head, a rule, four rows
    assert re.search(r"^Hardware: .*threads, ONNX Runtime [\d.]+", README, re.MULTILINE)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_extras_of_the_documents_exist_and_each_is_described() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pages = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
    for path, text in pages.items():
        lists = re.findall(r'"(?:\.|edge-prm)\[([a-z,]+)\]"', text)
        used = {extra for names in lists for extra in names.split(",")}
        assert used <= set(declared), path
    described = re.findall(r"^\| `(\w+)` \|", pages[ROOT / "docs" / "getting-started.md"], re.MULTILINE)
    assert sorted(described) == sorted(declared)
