"""What the command line says of a bundle: info, check, and one line for one that is bad."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import RANK_ROW, ROW, edit_manifest, refused, run

from edge_prm.manifest import Manifest, read_manifest

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
    assert facts["incremental_difference"] == 0
    assert facts["device_drift"] == 0
    assert 0 <= facts["mean_difference"] <= facts["max_difference"] <= facts["tolerance"]
    assert facts["reward_count"] > 5
    assert "can be trusted" in facts["sentence"]


def test_check_says_in_one_sentence_that_kernels_can_be_trusted(bundle: Path) -> None:
    result = run("check", bundle)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "can be trusted" in result.stdout


def shift(*names: str, by: float = 0.5) -> Callable[[dict], None]:
    """Move the first reward of the first golden trajectory, as if another device or model had given it."""

    def change(fields: dict) -> None:
        for name in names:
            rewards = fields["golden"][0][name]
            rewards[0] += by if rewards[0] < 0.5 else -by

    return change


def test_check_blames_the_device_for_rewards_that_the_exporting_one_did_not_give(own_bundle: Path) -> None:
    edit_manifest(own_bundle, shift("reference_rewards", "bundle_rewards"))  # there, both were elsewhere
    result = run("check", own_bundle)
    assert result.exit_code == 1
    assert "The kernels of this device" in result.stdout
    assert "cannot be trusted" in result.stdout
    facts = json.loads(run("check", own_bundle, "--json").stdout)
    assert (facts["trusted"], facts["verdict"]) == (False, "device")
    assert facts["device_drift"] == pytest.approx(0.5)


def test_check_blames_the_recipe_where_nothing_differs_from_the_exporting_device(own_bundle: Path) -> None:
    edit_manifest(own_bundle, shift("reference_rewards"))
    result = run("check", own_bundle)
    assert result.exit_code == 1
    assert "int8, is too coarse for its checkpoint" in result.stdout
    assert "export the checkpoint" in result.stdout
    assert "cannot be trusted" not in result.stdout
    facts = json.loads(run("check", own_bundle, "--json").stdout)
    assert (facts["trusted"], facts["verdict"], facts["device_drift"]) == (False, "recipe", 0)


def test_check_blames_the_device_where_both_are_wrong(own_bundle: Path) -> None:
    edit_manifest(own_bundle, shift("reference_rewards", by=0.5))
    edit_manifest(own_bundle, shift("bundle_rewards", by=0.2))
    assert json.loads(run("check", own_bundle, "--json").stdout)["verdict"] == "device"


def test_check_trusts_a_device_that_is_right_where_the_exporting_one_was_not(own_bundle: Path) -> None:
    edit_manifest(own_bundle, shift("bundle_rewards"))
    result = run("check", own_bundle, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verdict"] == "trusted"


def test_check_blames_the_device_for_rewards_that_depend_on_how_they_are_asked_for(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_prm.session import Session

    plain = Session.rewards.fget
    monkeypatch.setattr(Session, "rewards", property(lambda self: tuple(r + 0.01 for r in plain(self))))
    result = run("check", own_bundle, "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["verdict"] == "device"
    assert "step by step" in facts["sentence"]


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


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"not a graph", "not an ONNX graph"), (b"\x3a\x00", "cannot load")],  # no protobuf; an empty graph
)
def test_a_graph_that_the_engine_cannot_load_is_one_line(
    own_bundle: Path, rows: Callable, data: bytes, said: str
) -> None:
    from edge_prm.bundle import sha256_of

    graph = own_bundle / "model.onnx"
    graph.write_bytes(data)
    entry = {"sha256": sha256_of(graph), "bytes": len(data)}
    edit_manifest(own_bundle, lambda fields: fields["files"].update({"model.onnx": entry}))
    refused(run("score", own_bundle, rows(ROW)), said, "model.onnx")


def test_a_bundle_for_another_backend_is_one_line(own_bundle: Path, rows: Callable) -> None:
    edit_manifest(own_bundle, lambda fields: fields["recipe"].update(engine="abacus"))
    refused(run("score", own_bundle, rows(ROW)), "abacus", "update edge-prm")


def test_a_missing_engine_says_what_to_install(bundle: Path, rows: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(run("score", bundle, rows(ROW)), "onnxruntime", 'pip install "edge-prm[cpu]"')


@pytest.mark.parametrize("arguments", [["--split", "("], ["--threads", "0"], ["--aggregate", "best"], ["--threshold", "2"]])  # fmt: skip
def test_a_bad_option_is_refused_before_the_bundle_is_loaded(rows: Callable, arguments: list[str]) -> None:
    result = run("score", "nowhere", rows(ROW), *arguments)
    assert result.exit_code == 2
    assert "nowhere" not in result.stderr
    assert result.stderr.count("Error") == 1
