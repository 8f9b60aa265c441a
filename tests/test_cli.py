"""The command line: rows in, rows or a view out, one line for each error, and exit codes a script can rely on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import edge_prm
from edge_prm import cli
from edge_prm.aggregate import AGGREGATES
from edge_prm.manifest import MANIFEST_NAME, Manifest, read_manifest

PROMPT = "What is 2 + 3 * 4?"
STEPS = ["3 * 4 = 12", "2 + 12 = 13", "The answer is 13."]
ROW = {"problem": PROMPT, "steps": STEPS}
CANDIDATES = [STEPS, "3 * 4 = 12\n\n2 + 12 = 14", ["14"]]
RANK_ROW = {"problem": PROMPT, "candidates": CANDIDATES}


def run(*arguments: object, stdin: str | bytes | None = None, **options: Any) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=stdin, **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, *said: str) -> None:
    """Exit code 2 and one line that says why."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    for part in said:
        assert part in errors[0]


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Write lines (objects or bytes) to a file."""

    def write(*lines: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
        return path

    return write


@pytest.fixture(scope="module")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("sigmoid", "int8")


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    fields = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    change(fields)
    (folder / MANIFEST_NAME).write_text(json.dumps(fields), encoding="utf-8")
    return folder


# score


def test_score_gives_the_rewards_of_the_python_api(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(ROW, {**ROW, "id": "x", "steps": STEPS[:2]}), "--json")
    assert result.exit_code == 0
    with edge_prm.load(bundle) as prm:
        expected = [prm.score(PROMPT, STEPS), prm.score(PROMPT, STEPS[:2])]
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"id": id_, "rewards": list(score.rewards), "score": score.score, "tokens": score.tokens}
        for id_, score in zip((1, "x"), expected, strict=True)
    ]


@pytest.mark.parametrize("prompt", ["problem", "prompt"])
@pytest.mark.parametrize("completion", ["completion", "response", "output", "solution"])
def test_score_knows_the_usual_field_names(bundle: Path, rows: Callable, prompt: str, completion: str) -> None:
    result = run("score", bundle, rows({prompt: PROMPT, completion: "\n\n".join(STEPS), "level": 3}, ROW), "--json")
    renamed, usual = (json.loads(line) for line in result.stdout.splitlines())
    assert renamed["rewards"] == usual["rewards"]


@pytest.mark.parametrize("name", sorted(AGGREGATES))
def test_score_aggregates_as_asked(bundle: Path, rows: Callable, name: str) -> None:
    row = json.loads(run("score", bundle, rows(ROW), "--json", "--aggregate", name).stdout)
    assert row["score"] == AGGREGATES[name](row["rewards"])


def test_the_aggregates_offered_are_those_there_are() -> None:
    assert set(cli.AGGREGATES) == set(AGGREGATES)


def test_score_splits_as_asked(bundle: Path, rows: Callable) -> None:
    file = rows({"problem": PROMPT, "completion": "a\nb\n\nc; d"})
    counts = {split: len(json.loads(run("score", bundle, file, "--json", "--split", split).stdout)["rewards"])
              for split in ("blank", "lines", "; ?")}  # fmt: skip
    assert counts == {"blank": 2, "lines": 3, "; ?": 2}


@pytest.mark.parametrize("command", ["score", "rank"])
def test_rows_come_from_standard_input_too(bundle: Path, command: str) -> None:
    row = json.dumps(ROW | RANK_ROW)
    result = run(command, bundle, "-", "--json", stdin=f"{row}\n{row}\n")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


def test_json_output_is_nothing_but_json(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(ROW, {**ROW, "id": {"a": "é"}}), "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, {"a": "é"}]
    assert result.stdout.isascii()


def test_the_view_shows_every_step_and_marks_the_first_weak_one(bundle: Path, rows: Callable) -> None:
    rewards = json.loads(run("score", bundle, rows(ROW), "--json").stdout)["rewards"]
    threshold = sorted(rewards)[1]  # one step is below it
    weak = rewards.index(min(rewards))
    result = run("score", bundle, rows(ROW), "--threshold", threshold)
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.startswith("1  3 steps, ")
    assert f"last {rewards[-1]:.3f}" in head
    assert len(lines) == 3
    for index, (line, step, reward) in enumerate(zip(lines, STEPS, rewards, strict=True)):
        assert line.split()[0] == str(index + 1)
        assert f"{reward:.3f}" in line
        assert step in line
        assert ("first weak step" in line) == (index == weak)


def test_the_view_marks_no_step_when_none_is_weak(bundle: Path, rows: Callable) -> None:
    assert "weak" not in run("score", bundle, rows(ROW), "--threshold", 0).stdout


def test_the_view_marks_the_first_of_many_weak_steps(bundle: Path, rows: Callable) -> None:
    _, first, *others = run("score", bundle, rows(ROW), "--threshold", 1).stdout.splitlines()
    assert "first weak step" in first
    assert not any("weak" in line for line in others)


def test_the_view_keeps_a_step_on_one_line_and_shortens_it(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows({"problem": PROMPT, "steps": ["a\nb  c", "long " * 60]}), "--threshold", 0)
    _, first, second = result.stdout.splitlines()
    assert first.endswith("a b c")
    assert second.endswith("…")


def test_the_view_lets_no_text_steer_the_terminal(bundle: Path, rows: Callable) -> None:
    row = {"id": "\x1b]0;id\x07", "problem": PROMPT, "steps": ["\x1b[2Jcleared", "bell\x07 and \x9b2J"]}
    result = run("score", bundle, rows(row), color=True)
    assert "cleared" in result.stdout
    for steering in ("\x1b[2J", "\x1b]0", "\x07", "\x9b"):
        assert steering not in result.stdout


def test_the_view_shows_characters_that_are_joined(bundle: Path, rows: Callable) -> None:
    assert "👩\u200d👧" in run("score", bundle, rows({"problem": PROMPT, "steps": ["👩\u200d👧"]})).stdout


def test_an_error_lets_no_text_steer_the_terminal(bundle: Path, rows: Callable) -> None:
    assert "\x1b" not in run("score", bundle, rows({"\x1b[2J": 1}, ROW), color=True).stderr


@pytest.mark.parametrize("view", [[], ["--json"]])
def test_an_id_that_is_no_unicode_stops_nothing(bundle: Path, rows: Callable, view: list[str]) -> None:
    line = b'{"id": "\\ud800", "problem": "Q", "steps": ["a"]}'
    assert run("score", bundle, rows(line, ROW), *view).exit_code == 0


# rows that are bad


BAD_ROWS = [
    (b'{"problem": "Q", "steps": ["a"]', "not valid JSON"),
    (b'{"problem": "Q", "steps": ["\xff"]}', "not UTF-8"),
    (b"[" * 100_000, "not valid JSON"),
    (b"[1, 2]", "holds list, not an object"),
    (b"null", "holds NoneType"),
    ({"steps": ["a"]}, "no problem or prompt; its fields are steps"),
    ({"problem": "Q"}, "no steps (a list) or completion"),
    ({}, "its fields are none"),
    ({"problem": 7, "steps": ["a"]}, "problem is int"),
    ({"problem": "", "steps": ["a"]}, "prompt is empty"),
    ({"problem": "Q", "steps": "a"}, "steps are str, not a list"),
    ({"problem": "Q", "steps": []}, "empty list"),
    ({"problem": "Q", "steps": ["a", 3]}, "step 1 is int"),
    ({"problem": "Q", "steps": ["a", " "]}, "step 1 is empty"),
    ({"problem": "Q", "completion": None}, "completion is NoneType"),
    ({"problem": "Q", "completion": " "}, "completion is empty"),
    (b'{"problem": "Q\\ud800", "steps": ["a"]}', "lone surrogate"),
    ({"problem": "Q", "steps": ["word " * 1000]}, "context holds 512"),
]


@pytest.mark.parametrize(("bad", "said"), BAD_ROWS, ids=[said for _, said in BAD_ROWS])
def test_a_bad_row_is_named_by_its_line_and_the_others_are_scored(
    bundle: Path, rows: Callable, bad: Any, said: str
) -> None:
    result = run("score", bundle, rows(ROW, b"", bad, ROW), "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 4]
    error = next(line for line in result.stderr.splitlines() if line.startswith("Error"))
    assert "rows.jsonl, line 3: " in error
    assert said in error
    assert "2 rows done, 1 bad" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (KeyError, "candidates are missing"),
        ([], "candidates are missing, empty"),
        ("a", "not a list"),
        (["a", 3], "candidate 1 is neither"),
        ([{"score": 1}], "candidate 0 is neither"),
        (["a", ""], "candidate 1: completion is empty"),
        ([["a"], ["b", None]], "candidate 1: step 1 is NoneType"),
    ],
)
def test_a_bad_row_of_candidates_is_named(bundle: Path, rows: Callable, candidates: Any, said: str) -> None:
    row = {"problem": "Q"} | ({} if candidates is KeyError else {"candidates": candidates})
    result = run("rank", bundle, rows(row, RANK_ROW), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["id"] == 2
    assert "line 1: " in result.stderr
    assert said in result.stderr


def test_nothing_but_bad_rows_is_exit_code_1(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(b"{", b"{"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "0 rows done, 2 bad" in result.stderr


def test_strict_stops_at_the_first_bad_row(bundle: Path, rows: Callable) -> None:
    result = run("score", bundle, rows(ROW, b"{", ROW, b"{"), "--json", "--strict")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.count("Error") == 1


def test_a_byte_order_mark_blank_lines_and_windows_lines_are_no_fault(bundle: Path, rows: Callable) -> None:
    line = json.dumps(ROW).encode()
    result = run("score", bundle, rows(b"\xef\xbb\xbf" + line + b"\r", b" \r", b"", line + b"\r", b""), "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 4]


@pytest.mark.parametrize("data", [b"", b"\n\n", b" \n"])
def test_a_file_without_rows_is_bad_input(bundle: Path, rows: Callable, data: bytes) -> None:
    refused(run("score", bundle, rows(data)), "rows.jsonl holds no rows")


def test_a_file_that_is_missing_is_bad_input(bundle: Path, tmp_path: Path) -> None:
    refused(run("score", bundle, tmp_path / "nowhere.jsonl"), "nowhere.jsonl")


# rank


def test_rank_gives_the_ranking_of_the_python_api(bundle: Path, rows: Callable) -> None:
    result = run("rank", bundle, rows(RANK_ROW | {"id": "q7"}), "--json", "--aggregate", "mean")
    assert result.exit_code == 0
    with edge_prm.load(bundle) as prm:
        ranking = prm.rank(PROMPT, CANDIDATES, aggregate="mean")
    assert json.loads(result.stdout) == {
        "id": "q7",
        "best": ranking.best,
        "scores": list(ranking.scores),
        "rewards": [list(rewards) for rewards in ranking.rewards],
    }


def test_candidates_may_be_objects(bundle: Path, rows: Callable) -> None:
    objects = [{"steps": STEPS, "model": "x"}, {"text": CANDIDATES[1]}, {"text": ["14"]}]
    result = run("rank", bundle, rows({"prompt": PROMPT, "candidates": objects}, RANK_ROW), "--json")
    left, right = (json.loads(line) for line in result.stdout.splitlines())
    assert left["rewards"] == right["rewards"]


def test_rank_tells_which_candidates_it_gave_up(bundle: Path, rows: Callable) -> None:
    row = json.loads(run("rank", bundle, rows(RANK_ROW), "--json", "--give-up-below", 1).stdout)
    assert (row["best"], row["stopped"]) == (None, [0, 1, 2])
    assert [len(rewards) for rewards in row["rewards"]] == [1, 1, 1]


def test_early_stop_gives_the_same_best(bundle: Path, rows: Callable) -> None:
    best = [json.loads(run("rank", bundle, rows(RANK_ROW), "--json", "--aggregate", "min", *stop).stdout)["best"]
            for stop in ([], ["--early-stop"])]  # fmt: skip
    assert best[0] == best[1]


def test_early_stop_under_an_aggregate_that_can_rise_is_named(bundle: Path, rows: Callable) -> None:
    result = run("rank", bundle, rows(RANK_ROW), "--aggregate", "mean", "--early-stop")
    refused(result, "early_stop needs aggregate min or prod")


def test_the_view_of_a_ranking_shows_the_best_first(bundle: Path, rows: Callable) -> None:
    scores = json.loads(run("rank", bundle, rows(RANK_ROW), "--json").stdout)["scores"]
    order = sorted(range(3), key=lambda i: -scores[i])
    head, *lines = run("rank", bundle, rows(RANK_ROW)).stdout.splitlines()
    assert head.startswith("1  3 candidates, last")
    assert [int(line.split()[0]) for line in lines] == order
    assert ["best" in line for line in lines] == [True, False, False]
    assert "3 * 4 = 12" in "".join(lines)


def test_the_view_of_a_ranking_says_what_was_given_up(bundle: Path, rows: Callable) -> None:
    lines = run("rank", bundle, rows(RANK_ROW), "--give-up-below", 1).stdout.splitlines()[1:]
    assert all("given up" in line and "best" not in line for line in lines)


# info and check


@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_info_is_the_manifest(bundle_of: Callable[..., Path], head: str) -> None:
    folder = bundle_of(head, "fp32")
    assert Manifest.from_json(run("info", folder, "--json").stdout, "stdout") == read_manifest(folder)


def test_info_shows_what_a_bundle_is(bundle: Path) -> None:
    text = run("info", bundle).stdout
    for part in ("tiny-sigmoid", "2 layers", "sigmoid", "int8", "512 tokens", "model.onnx.data", "sha256"):
        assert part in text


@pytest.mark.parametrize("recipe", ["int8", "fp32"])
@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_check_trusts_the_device_that_exported(bundle_of: Callable[..., Path], head: str, recipe: str) -> None:
    result = run("check", bundle_of(head, recipe), "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["trusted"]
    assert facts["streamed_equal"]
    assert facts["drift"] == 0
    assert 0 <= facts["mean_difference"] <= facts["max_difference"] <= facts["tolerance"]
    assert facts["rewards"] > 5
    assert "can be trusted" in facts["sentence"]


def test_check_says_in_one_sentence_that_kernels_can_be_trusted(bundle: Path) -> None:
    result = run("check", bundle)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "can be trusted" in result.stdout


def test_check_does_not_trust_other_rewards(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda fields: fields["golden"][0]["reference_rewards"].__setitem__(0, 0.0))
    edit_manifest(own_bundle, lambda fields: fields["golden"][1]["reference_rewards"].__setitem__(0, 1.0))
    result = run("check", own_bundle)
    assert result.exit_code == 1
    assert "cannot be trusted" in result.stdout
    assert "--reduce-range" in result.stdout


def test_check_finds_another_tokenizer(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda fields: fields["golden"][0].update(token_ids_sha256="0" * 64))
    refused(run("check", own_bundle), "tokenizer gives other tokens")


def test_check_needs_golden_trajectories(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda fields: fields.update(golden=[], fidelity=None))
    refused(run("check", own_bundle), "no golden trajectories")


def test_check_hashes_every_file(own_bundle: Path) -> None:
    data = bytearray((own_bundle / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (own_bundle / "model.onnx.data").write_bytes(data)
    refused(run("check", own_bundle), "model.onnx.data", "edited")


# bundles that are bad


@pytest.mark.parametrize("command", ["score", "rank", "info", "check"])
def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path, rows: Callable, command: str) -> None:
    file = [rows(ROW | RANK_ROW)] if command in ("score", "rank") else []
    refused(run(command, tmp_path / "nowhere", *file), "nowhere", "no such folder", "edge-prm export")
    refused(run(command, tmp_path, *file), "no edge_prm.json in it")


@pytest.mark.parametrize("command", ["score", "check"])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_damaged_bundle_is_one_line(own_bundle: Path, rows: Callable, command: str, name: str) -> None:
    file = [rows(ROW)] if command == "score" else []
    data = (own_bundle / name).read_bytes()
    (own_bundle / name).write_bytes(data[:-1])
    refused(run(command, own_bundle, *file), name, "truncated")
    (own_bundle / name).unlink()
    refused(run(command, own_bundle, *file), name, "missing")


def test_a_newer_bundle_is_one_line(own_bundle: Path, rows: Callable) -> None:
    edit_manifest(own_bundle, lambda fields: fields.update(format_version=99))
    refused(run("score", own_bundle, rows(ROW)), "bundle format 99", "pip install -U edge-prm")


def test_a_graph_that_the_engine_cannot_load_is_one_line(own_bundle: Path, rows: Callable) -> None:
    from edge_prm.bundle import sha256_of

    graph = own_bundle / "model.onnx"
    graph.write_bytes(b"not a graph")
    edit_manifest(
        own_bundle, lambda fields: fields["files"].update({"model.onnx": {"sha256": sha256_of(graph), "bytes": 11}})
    )
    result = run("score", own_bundle, rows(ROW))
    refused(result, "ONNX Runtime", "cannot load", "model.onnx")


def test_a_bundle_for_another_backend_is_one_line(own_bundle: Path, rows: Callable) -> None:
    edit_manifest(own_bundle, lambda fields: fields.update(backend="abacus"))
    refused(run("score", own_bundle, rows(ROW)), "abacus")


def test_a_missing_engine_says_what_to_install(bundle: Path, rows: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(run("score", bundle, rows(ROW)), "onnxruntime", 'pip install "edge-prm[cpu]"')


@pytest.mark.parametrize("arguments", [["--split", "("], ["--threads", "0"], ["--aggregate", "best"], ["--threshold", "2"]])  # fmt: skip
def test_a_bad_option_is_refused_before_the_bundle_is_loaded(rows: Callable, arguments: list[str]) -> None:
    result = run("score", "nowhere", rows(ROW), *arguments)
    assert result.exit_code == 2
    assert "nowhere" not in result.stderr
    assert result.stderr.count("Error") == 1


# export


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path]) -> Path:
    return checkpoint_of("sigmoid")


def test_export_writes_a_bundle_and_says_so(checkpoint: Path, tmp_path: Path, rows: Callable) -> None:
    result = run("export", checkpoint, "-o", tmp_path / "out")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    for part in (str(tmp_path / "out"), "int8", "sigmoid head", "golden rewards within", "of full precision"):
        assert part in line
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.recipe.name, manifest.recipe.reduce_range) == ("int8", False)
    assert manifest.source.name == "tiny-sigmoid"
    assert run("score", tmp_path / "out", rows(ROW)).exit_code == 0


def test_export_tells_its_figures_as_json(checkpoint: Path, tmp_path: Path) -> None:
    facts = json.loads(run("export", checkpoint, "-o", tmp_path / "out", "--fp32", "--json").stdout)
    assert facts["bundle"] == str(tmp_path / "out")
    assert (facts["recipe"], facts["head"]) == ("fp32", "sigmoid")
    files = [path for path in (tmp_path / "out").iterdir() if path.name != MANIFEST_NAME]
    assert facts["bytes"] == sum(path.stat().st_size for path in files if not path.name.startswith("."))
    assert 0 <= facts["mean_difference"] <= facts["max_difference"] < 1e-4


@pytest.mark.parametrize(
    ("options", "name"),
    [([], "tiny-sigmoid-int8"), (["--fp32"], "tiny-sigmoid-fp32"), (["--reduce-range"], "tiny-sigmoid-int8-reduced")],
)
def test_export_names_its_output_after_checkpoint_and_recipe(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", checkpoint, *options).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read_manifest(tmp_path / name).recipe.reduce_range == ("--reduce-range" in options)


def test_export_refuses_an_output_that_is_there(checkpoint: Path, own_bundle: Path, tmp_path: Path) -> None:
    before = contents(own_bundle)
    refused(run("export", checkpoint, "-o", own_bundle), str(own_bundle), "already exists", "--force")
    assert contents(own_bundle) == before
    (tmp_path / "file").write_text("mine")
    refused(run("export", checkpoint, "-o", tmp_path / "file"), "already exists")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_force_replaces_a_bundle(checkpoint: Path, own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "left-over").write_text("of an older version")
    assert run("export", checkpoint, "-o", own_bundle, "--fp32", "--force").exit_code == 0
    assert read_manifest(own_bundle).recipe.name == "fp32"
    assert not (own_bundle / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == [own_bundle.name]


def test_force_takes_an_empty_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("export", checkpoint, "-o", tmp_path / "out", "--fp32", "--force").exit_code == 0


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_refuses_what_is_no_bundle(checkpoint: Path, own_bundle: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "mine"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    elif kind == "file":
        target.write_text("years of work")
    else:
        target.symlink_to(own_bundle)
    refused(run("export", checkpoint, "-o", target, "--force"), "is not an edge-prm bundle", "--force replaces only")
    assert target.exists()
    assert kind != "folder" or (target / "thesis.tex").read_text() == "years of work"
    assert kind != "link" or target.is_symlink()


FAILURES = {
    "disk full": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    "memory": (MemoryError(), "not enough memory"),
}


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_export_leaves_nothing_and_says_why(
    checkpoint: Path, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, force: list[str]
) -> None:
    from edge_prm_export.graph import WeightFile

    error, said = FAILURES[name]
    calls = iter(range(10))

    def fail(self: WeightFile, data: bytes, alignment: int = 1) -> int:
        if next(calls) > 5:
            raise error
        return append(self, data, alignment)

    append = WeightFile.append
    monkeypatch.setattr(WeightFile, "append", fail)
    before = contents(own_bundle)
    target = own_bundle if force else tmp_path / "out"
    refused(run("export", checkpoint, "-o", target, *force), said)
    assert contents(own_bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == [own_bundle.name]


def test_an_interrupted_export_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_prm_export.graph import GraphWriter

    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(GraphWriter, "model", interrupt)
    assert run("export", checkpoint, "-o", tmp_path / "out").exit_code != 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_told_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    result = run("export", checkpoint, "-o", tmp_path / "deep" / "out")
    refused(result, "the bundle needs", "GB free")
    assert "Errno" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(tmp_path: Path, tokenizer_file: Path) -> None:
    from tiny import write_checkpoint

    pytest.importorskip("ml_dtypes", reason='exporting needs it: pip install "edge-prm[export]"')
    source = write_checkpoint(tmp_path / "source", tokenizer_file, "none")
    refused(run("export", source, "-o", tmp_path / "out"), "no reward head", "reward_head.pt")
    source = write_checkpoint(tmp_path / "source", tokenizer_file, drop=["model.layers.1.mlp.down_proj.weight"])
    refused(run("export", source, "-o", tmp_path / "out"), "model.layers.1.mlp.down_proj.weight is missing")
    refused(run("export", tmp_path / "nowhere", "-o", tmp_path / "out"), "no such folder")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
@pytest.mark.parametrize("damage", ["missing", "not JSON", "too large"])
def test_a_checkpoint_with_a_bad_tokenizer_is_one_line(
    tmp_path: Path, tokenizer_file: Path, head: str, damage: str
) -> None:
    from tiny import write_checkpoint

    pytest.importorskip("ml_dtypes", reason='exporting needs it: pip install "edge-prm[export]"')
    source = write_checkpoint(
        tmp_path / "source", tokenizer_file, head, **({"vocab_size": 64} if damage == "too large" else {})
    )
    if damage == "missing":
        (source / "tokenizer.json").unlink()
    elif damage == "not JSON":
        (source / "tokenizer.json").write_text("{")
    result = run("export", source, "-o", tmp_path / "out")
    refused(result, "tokenizer.json")
    assert ".out.partial" not in result.stderr, "the message names the checkpoint's file, not a temporary one"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "ml_dtypes", "threadpoolctl"])
def test_a_missing_module_says_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused(run("export", checkpoint, "-o", tmp_path / "out"), module, 'pip install "edge-prm[')
    assert list(tmp_path.iterdir()) == []


def test_every_missing_module_is_named_and_the_demo_needs_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnx", "threadpoolctl"):
        monkeypatch.setitem(sys.modules, module, None)
    refused(run("demo"), "onnx, threadpoolctl not installed", 'pip install "edge-prm[export]"')


@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_an_empty_separator_is_refused(checkpoint_of: Callable[[str], Path], tmp_path: Path, head: str) -> None:
    result = run("export", checkpoint_of(head), "--separator", "", "-o", tmp_path / "out")
    refused(result, "separator is empty", "leave the option out")


def test_reduce_range_goes_with_int8(checkpoint: Path, tmp_path: Path) -> None:
    refused(run("export", checkpoint, "--fp32", "--reduce-range", "-o", tmp_path / "out"), "reduce_range", "int8")


# the command itself


def test_help_tells_of_every_command() -> None:
    text = run("--help").stdout
    for name, command in cli.main.commands.items():
        assert name in text
        assert command.help
        assert run(name, "-h").stdout.startswith("Usage: ")


def test_every_option_is_explained() -> None:
    for name, command in cli.main.commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_the_version_is_the_package_s() -> None:
    assert run("--version").stdout.strip() == f"edge-prm, version {edge_prm.__version__}"


def test_an_unknown_command_is_bad_usage() -> None:
    assert run("judge").exit_code == 2


def test_a_bug_shows_itself(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that nobody meant to raise are not dressed up as bad input."""
    monkeypatch.setattr("edge_prm.manifest.read_manifest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("info", bundle)
