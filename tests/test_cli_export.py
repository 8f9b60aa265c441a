"""`edge-prm export`: a bundle or nothing, and one line that says why."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import RANK_ROW, ROW, refused, run
from conftest import REDUCED, need_engine

from edge_prm.manifest import MANIFEST_NAME, read_manifest

INT8 = ["--reduce-range"] * REDUCED


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path]) -> Path:
    return checkpoint_of("sigmoid")


def test_export_writes_a_bundle_and_says_so(checkpoint: Path, tmp_path: Path, rows: Callable) -> None:
    result = run("export", checkpoint, "-o", tmp_path / "out", *INT8)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    for part in (str(tmp_path / "out"), "int8", "sigmoid head", "golden rewards within", "of full precision"):
        assert part in line
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.recipe.name, manifest.recipe.reduce_range) == ("int8", REDUCED)
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
    assert run("export", checkpoint, *options).exit_code in (0, 1)  # 1: outside its tolerance, as int8 may be
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
    from edge_prm_export.onnx.writer import WeightFile

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
    from edge_prm_export.onnx.writer import GraphWriter

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


@pytest.mark.parametrize(
    ("given", "separator"),
    [
        (r"\n\n", "\n\n"),
        ("\n\n", "\n\n"),
        (r"\t", "\t"),
        (r"\r\n", "\r\n"),
        (r" \\n", r" \n"),
        ("<extra_0>", "<extra_0>"),
    ],
)
def test_escapes_of_a_separator_are_read_and_shown(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, given: str, separator: str
) -> None:
    need_engine("onnx")
    out = tmp_path / "out"
    shown = run("export", checkpoint_of("token_class"), "--fp32", "--separator", given, "-o", out).stdout
    assert f"token_class head, separator {separator!r}" in shown
    assert read_manifest(out).input.separator == separator
    again = run("export", checkpoint_of("token_class"), "--fp32", "--separator", given, "-o", out, "--force", "--json")
    assert json.loads(again.stdout)["separator"] == separator


@pytest.mark.parametrize("option", ["--separator", "--between", "--after-step"])
@pytest.mark.parametrize("text", ["\\d+", "x\\", "\\\\\\x"])
def test_a_backslash_that_is_no_escape_is_pointed_out(checkpoint: Path, tmp_path: Path, option: str, text: str) -> None:
    refused(run("export", checkpoint, option, text, "-o", tmp_path / "out"), option, "has a backslash that is none of")
    assert list(tmp_path.iterdir()) == []


TRIMMING = (
    "{{ strftime_now('%Y') }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content | trim }}<|im_end|>\n{% endfor %}"
)


def test_a_template_that_trims_and_dates_is_exported_and_said(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, rows: Callable
) -> None:
    """Blanks around the prompt make no difference, streamed rewards are those of one shot, and the date is said."""
    import edge_prm

    need_engine("onnx")
    source = Path(shutil.copytree(checkpoint_of("two_class"), tmp_path / "source"))
    (source / "chat_template.jinja").write_text(TRIMMING)
    result = run("export", source, "--fp32", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "Note: the chat template writes the date; the bundle keeps that of its export, 20" in result.stderr
    steps = ["  2 + 3 = 5. ", " The answer is 5."]
    with edge_prm.load(tmp_path / "out") as prm:
        bare = prm.score("What is 2 + 3?", steps)
        assert prm.score(" \nWhat is 2 + 3?\n\t", steps).rewards == bare.rewards
        assert prm.score("What is 2 + 3?", [steps[0].lstrip(), steps[1]]).rewards == bare.rewards
        assert prm.score("What is 2 + 3?", [steps[0], steps[1].strip()]).rewards != bare.rewards
        with prm.session("What is 2 + 3?\n") as session:
            assert tuple(session.push(step) for step in steps) == bare.rewards


def test_text_that_a_template_rewrites_costs_only_its_row(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, rows: Callable
) -> None:
    need_engine("onnx")
    source = Path(shutil.copytree(checkpoint_of("two_class"), tmp_path / "source"))
    content = "message.content.split('</think>')[-1]"
    (source / "chat_template.jinja").write_text(TRIMMING.replace("message.content", content))
    assert run("export", source, "--fp32", "-o", tmp_path / "out").exit_code == 0
    bad = {"problem": "What is 2 + 3?", "steps": ["<think>hm</think>2 + 3 = 5", "5"]}
    result = run("score", tmp_path / "out", rows(bad, ROW), "--json")
    assert result.exit_code == 1
    assert "step 0 holds '</think>'" in result.stderr
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_an_empty_separator_is_refused(checkpoint_of: Callable[[str], Path], tmp_path: Path, head: str) -> None:
    result = run("export", checkpoint_of(head), "--separator", "", "-o", tmp_path / "out")
    refused(result, "separator is empty", "leave the option out")


def test_reduce_range_goes_with_int8(checkpoint: Path, tmp_path: Path) -> None:
    refused(run("export", checkpoint, "--fp32", "--reduce-range", "-o", tmp_path / "out"), "reduce_range", "int8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rotate"], "options of a GGUF bundle"),
        (["--gguf-type", "Q9"], "gguf_type 'Q9' is not known; choose one of F32, F16"),
        (["--gguf", "--reduce-range"], "reduce_range is for ONNX bundles"),
        (["--gguf", "--exporter", "optimum"], "optimum writes ONNX bundles"),
        (["--good-token", "+"], "--good-token and --bad-token go together"),
        (["--after-step", "x"], "describe a token_pair head, and this checkpoint has a sigmoid head"),
        (["--good-token", "+", "--bad-token", "nothing"], "no token 'nothing'; name the right one with --bad-token"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    checkpoint: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    refused(run("export", checkpoint, "-o", tmp_path / "out", *options), said)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_tokens_is_told_in_the_bundle(checkpoint: Path, tmp_path: Path, rows: Callable) -> None:
    options = ["--fp32", "--good-token", "+", "--bad-token", "-", "--separator", " ки", "--after-step", "\n"]
    assert run("export", checkpoint, "-o", tmp_path / "out", *options).exit_code == 0
    shown = run("info", tmp_path / "out").stdout
    assert "token_pair ('+' against '-'), score by min" in shown
    assert "tagged, separator ' ки'" in shown
    assert run("score", tmp_path / "out", rows(ROW)).exit_code == 0


def test_a_gguf_bundle_goes_all_the_way(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Callable
) -> None:
    need_engine("gguf")
    monkeypatch.chdir(tmp_path)
    facts = json.loads(run("export", checkpoint_of("two_class"), "--gguf", "--fp16", "--json").stdout)
    assert (facts["bundle"], facts["backend"], facts["recipe"]) == ("tiny-two_class-gguf-f16", "gguf", "f16")
    assert run("check", facts["bundle"]).exit_code == 0
    found = json.loads(run("score", facts["bundle"], rows(ROW), "--device", "cpu", "--json").stdout)
    assert len(found["rewards"]) == len(ROW["steps"])
    assert run("rank", facts["bundle"], rows(RANK_ROW)).exit_code == 0
    assert "f16 for backend gguf" in run("info", facts["bundle"]).stdout


def test_a_gpu_for_an_onnx_bundle_is_refused(bundle: Path, rows: Callable) -> None:
    refused(
        run("score", bundle, rows(ROW), "--device", "gpu"),
        "which runs on the CPU",
        "export with --device cuda or --gguf",
    )
    refused(run("check", bundle, "--gpu-layers", 3), "which runs on the CPU")
