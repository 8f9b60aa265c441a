"""The command line as people meet it: its help, its examples, mistyped names, and any nonsense that is typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from command_line import refused, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_prm
from edge_prm.cli.command import SECTIONS, Option
from edge_prm.cli.main import main
from edge_prm.errors import InputError
from edge_prm.exit_codes import MEANINGS
from edge_prm.source import DEFAULT_SOURCE


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


COMMANDS = dict(all_commands(main))
OPTIONS = [
    pytest.param(option, id=f"{name} {option.name}")
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]
EXAMPLES = [example for command in (main, *COMMANDS.values()) for example in command.examples]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert any(f"edge-prm {name}" in example for example in command.examples)
    text = run(*name.split(), "--help").stdout
    assert text.startswith(f"Usage: edge-prm {name} ")
    assert text == run(*name.split(), "-h").stdout
    assert all(example in text for example in command.examples)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_help_under_a_heading(option: click.Option) -> None:
    assert isinstance(option, Option)
    assert option.section in SECTIONS
    assert option.help
    assert option.help.endswith((".", "...", ")")), option.help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_lists_each_option_once_by_section(name: str) -> None:
    text = run(*name.split(), "--help").stdout
    headings = re.findall(r"^(\w.*) options:$", text, re.MULTILINE)
    assert headings == [section for section in SECTIONS if section in headings]
    listed = re.findall(
        r"^  (?:-\w, )?(--[\w-]+)", text.partition(" options:\n")[2].partition("\nExamples:")[0], re.MULTILINE
    )
    options = [option for option in COMMANDS[name].params if isinstance(option, click.Option)]
    assert sorted(listed) == sorted([max(option.opts, key=len) for option in options] + ["--help"])


@pytest.mark.parametrize("group", [(), ("bench",)], ids=["edge-prm", "bench"])
def test_the_list_of_commands_cuts_no_sentence(group: tuple[str, ...]) -> None:
    text = run(*group, "--help").stdout
    listed = text.partition("\nCommands:\n")[2].partition("\n\n")[0]
    assert "..." not in listed
    flat = " ".join(listed.split())
    for name, command in COMMANDS.items():
        if name.split()[:-1] == list(group):
            sentence = " ".join(str(command.help).partition(".\n")[0].split()).partition(". ")[0]
            assert f"{name.split()[-1]} {sentence}" in flat


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_parsed(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in COMMANDS.values():
        if not isinstance(command, click.Group):
            monkeypatch.setattr(command, "callback", lambda **_: None)
    inner = re.search(r"\$\((.*)\)", example)
    line = inner[1] if inner else re.split(r" \| | > |  #", example.removeprefix("cat traces.jsonl | "))[0]
    program, *arguments = shlex.split(line)
    assert program == "edge-prm"
    result = run(*("--help" if argument == "COMMAND" else argument for argument in arguments))
    assert result.exit_code == 0, result.output


def test_the_help_of_export_announces_the_download() -> None:
    text = " ".join(run("export", "--help").stdout.split())
    assert (
        f"Without SOURCE, the default checkpoint {DEFAULT_SOURCE} is downloaded: about 3 GB, to the Hub cache" in text
    )
    assert "--yes" in text


def test_the_help_has_the_exit_codes() -> None:
    text = run("--help").stdout.partition("\nExit codes:\n")[2]
    flat = " ".join(text.split())
    assert flat == " ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items())


def test_the_version_is_the_package_s() -> None:
    assert run("--version").stdout.strip() == f"edge-prm, version {edge_prm.__version__}"


def test_a_command_keeps_its_name_however_it_is_started() -> None:
    result = CliRunner().invoke(main, ["score", "--help"], prog_name="python -m edge_prm")
    assert result.stdout.startswith("Usage: edge-prm score ")


# mistyped names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("scor", "score"), ("Rank", "rank"), ("exprot", "export"), ("benhc", "bench"), ("fidelity", "bench fidelity")],
)
def test_a_mistyped_command_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    refused(run(typed, "x"), f"there is no command '{typed}'; did you mean `edge-prm {meant}`?")


def test_an_unknown_command_is_answered_with_the_list() -> None:
    refused(
        run("abc"),
        "there is no command 'abc'; choose one of demo, doctor, export, info, check, rows, score, rank, bench",
    )


def test_a_mistyped_option_is_answered_with_the_nearest() -> None:
    result = run("score", "bundle", "rows", "--aggregat", "min")
    assert result.exit_code == 2
    assert "--aggregate" in result.stderr


def test_a_mistyped_part_is_never_a_missing_bundle() -> None:
    result = run("bench", "fidelityy", "x")
    refused(result, "for the part fidelity, write `edge-prm bench fidelity ...`")
    assert "not an edge-prm bundle" not in result.stderr


# anything


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, and no work for the commands that need no input."""
    monkeypatch.chdir(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise InputError("no work in this test")

    monkeypatch.setattr("edge_prm.cli.demo_run.run_demo", fail)
    monkeypatch.setattr("edge_prm.cli.bench._demo_pair", fail)
    monkeypatch.setattr("edge_prm.cli.download.pending_download", fail)


ODD = [
    "", "''", "-", "--", "-x", "--yes", "'\\0'", "-h -h", "-q -v info x", "-vvvv info x", "-q info x -v", "--quiet", "help",
    "score", "score x", "score x y z", "score . .", "score -- -x -y", "score x - --json", "score x y --weak-below nan",
    "score x y --split '('", "score x y --threads 0", "score x y -o .", "rank x y --prune-below 2", "rank x y --early-stop",
    "rows /dev/null", "rows . --limit -1", "rows 'a\u20ac\U0001f600'", "info ''", "info x y", "info '\\udce4'", "check /",
    "export ''", "export .", "export /dev/null", "export a/b", "export a/b/c", "export '~/x'", "export " + "x" * 5000,
    "export " + "x/" + "y" * 5000, "export demo --gguf-type x", "export embedded:demo --revision main", "export x --int4",
    "bench x", "bench --lengths 0", "bench -q fidelity x", "bench suite bench", "bench reference", "bench reference x y",
    "bench fidelity --threshold nan --data x y", "completion", "completion powershell", "demo --threads -1", "demo x",
]  # fmt: skip


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("line", ODD)
def test_an_odd_command_line_is_one_error_with_a_code_of_the_table(line: str) -> None:
    arguments = [part.replace("\\0", "\0").replace("\\udce4", "\udce4") for part in shlex.split(line)]
    result = run(*arguments)
    assert result.exit_code in MEANINGS, result.output
    assert "Traceback" not in result.stderr
    if result.exit_code:
        assert "Error: " in result.stderr or "Usage: " in result.stderr
    else:
        assert result.stdout


WORDS = st.sampled_from(
    sorted(
        {word for name in COMMANDS for word in name.split()}
        | {name for command in COMMANDS.values() for option in command.params for name in option.opts}
        | {
            "--",
            "-",
            "--help",
            "-v",
            "-1",
            "0",
            "1e9",
            "nan",
            "x",
            "./x",
            "a/b",
            ".",
            "/dev/null",
            "auto",
            "cpu",
            "(",
            "ki",
        }
    )
)


@pytest.mark.usefixtures("no_work")
@given(st.lists(WORDS | st.text(max_size=5), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_line_ends_in_a_traceback(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code in MEANINGS, (arguments, result.output)
    assert "Traceback" not in result.stderr


def test_a_bug_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that nobody meant to raise are not presented as bad input."""
    monkeypatch.setattr("edge_prm.manifest.read_manifest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("info", "x")


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_EDGE_PRM_COMPLETE={shell}_complete" in result.stdout
    assert "edge-prm" in result.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("edge-prm ", {"score", "bench", "completion"}),
        ("edge-prm bench ", {"suite", "fidelity", "reference"}),
        ("edge-prm sc", {"score"}),
        ("edge-prm rank x y --prune", {"--prune-below"}),
        ("edge-prm score x y --device ", {"cpu", "gpu", "auto"}),
    ],
)
def test_a_shell_is_offered_commands_options_and_values(words: str, offered: set[str]) -> None:
    position = str(len(words.split()) - (not words.endswith(" ")))
    environment = {"_EDGE_PRM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position}
    result = run(env=environment)
    assert {line.partition(",")[2] for line in result.stdout.splitlines()} >= offered
