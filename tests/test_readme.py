"""What the README says can be done."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_prm.aggregate import AGGREGATES
from edge_prm.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_set_up_is_exactly_two_commands() -> None:
    section = README.split("## Set up")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block
    install, test = block.group(1).strip().splitlines()
    assert install.endswith("edge-prm demo")
    assert test.endswith("python -m pytest")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_extras_of_the_set_up_exist() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    used = {extra for group in re.findall(r'"\.\[([a-z,]+)\]"', README) for extra in group.split(",")}
    assert used
    assert used <= set(declared)
    described = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert described == set(declared) - {"dev"}


@pytest.mark.parametrize("command", sorted(set(main.commands) - {"completion"}))  # it prints a script for a shell
def test_every_command_is_in_the_readme_and_has_help(command: str) -> None:
    assert f"edge-prm {command}" in README
    for path in [[command], *([command, part] for part in getattr(main.commands[command], "commands", ()))]:
        result = CliRunner().invoke(main, [*path, "--help"])
        assert result.exit_code == 0
        if path != ["bench"]:  # a group
            assert "--json" in result.output


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


def test_every_option_of_the_readme_exists() -> None:
    known = {option for command in commands(main) for param in command.params for option in param.opts}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README.split("## Numbers")[0]))
    assert used <= known


def test_every_aggregate_is_in_the_readme() -> None:
    assert all(f"`{name}`" in README for name in AGGREGATES)
