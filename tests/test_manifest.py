"""edge_prm.json: what is written is what is read, and what is damaged is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edge_prm.backends import load_model
from edge_prm.bundle import Bundle
from edge_prm.errors import BundleIntegrityError, BundleNotFoundError, BundleVersionError, InputError
from edge_prm.input_format import ChatRules
from edge_prm.manifest import FORMAT_VERSION, MANIFEST_NAME, Fidelity, FileEntry, Golden, Manifest, read_manifest
from edge_prm.recipe import ENGINES, RECIPES


@pytest.fixture(scope="module")
def manifest(manifest_for: Callable[..., Manifest]) -> Manifest:
    return manifest_for(
        "template",
        recipe=RECIPES["onnx", "int8"].with_weights(reduce_range=True),
        files={name: FileEntry("ab" * 32, 5) for name in ("tokenizer.json", "model.onnx", "model.onnx.data")},
        golden=(Golden("Q é", ("a", "b"), "ef" * 32, (0.25, 0.5), (0.26, 0.51)),),
        fidelity=Fidelity("numpy fp32", 2, 0.01, 0.01, 0.06),
    )


@pytest.fixture
def fields(manifest: Manifest) -> dict[str, Any]:
    return json.loads(manifest.to_json())


@pytest.mark.parametrize("form", ["raw", "template", "pieces"])
def test_a_manifest_survives_writing_and_reading(manifest_for: Callable[..., Manifest], form: str) -> None:
    manifest = manifest_for(form)
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def test_every_field_survives_writing_and_reading(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def as_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """What an exporter before format 3 wrote for the same bundle."""
    recipe, fidelity = fields["recipe"], dict(fields["fidelity"])
    fidelity["rewards"] = fidelity.pop("reward_count")
    fidelity["stream_tolerance"] = fidelity.pop("incremental_tolerance")
    old = {"name": recipe["name"], "reduce_range": recipe["weights"]["reduce_range"], "rotated": False}
    form = {name: value for name, value in fields["input"].items() if name != "chat"} | fields["input"]["chat"]
    rest = {name: value for name, value in fields.items() if name != "convention"}
    changed = {"backend": recipe["engine"], "recipe": old, "fidelity": fidelity, "input": form}
    return rest | changed | {"format_version": 2}


def of_version(manifest: Manifest, version: int) -> Manifest:
    return replace(manifest, provenance=replace(manifest.provenance, format_version=version))


def test_a_manifest_of_format_2_is_read(fields: dict[str, Any], manifest: Manifest) -> None:
    assert Manifest.from_json(json.dumps(as_format_2(fields)), "here") == of_version(manifest, 2)


def test_a_manifest_of_format_1_is_read(fields: dict[str, Any], manifest: Manifest) -> None:
    """It has no word on what a template trims or rewrites; such bundles are read as they always were."""
    old = as_format_2(fields) | {"format_version": 1}
    for name in ("trim_user", "trim_assistant", "refused", "dated"):
        del old["input"][name]
    del old["fidelity"]["stream_tolerance"]
    del old["fidelity"]["within_tolerance"]
    del old["recipe"]["rotated"]
    assert Manifest.from_json(json.dumps(old), "here") == of_version(manifest, 1)


@pytest.mark.parametrize("key", RECIPES)
def test_every_recipe_of_an_older_format_is_that_of_the_table(fields: dict[str, Any], key: tuple[str, str]) -> None:
    old = as_format_2(fields)
    old["recipe"] = {"name": key[1], "reduce_range": False, "rotated": key == ("gguf", "q4_0")}
    old["files"] = {name: {"sha256": "ab" * 32, "bytes": 5} for name in ENGINES[key[0]].files}
    read = Manifest.from_json(json.dumps(old | {"backend": key[0]}), "here").recipe
    assert read == RECIPES[key].with_weights(rotated=True if key == ("gguf", "q4_0") else None)


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "abacus"}, {"backend": None}, {"backend": []}, {"recipe": None}, {"recipe": {}}, {"recipe": "int8"},
        {"recipe": {"name": "int9"}}, {"recipe": {"name": "int8", "reduce_range": 1}}, {"recipe": {"name": []}},
        {"recipe": {"name": "int8", "bits": 8}}, {"fidelity": {"reference": "x", "rewards": "2"}},
    ],
)  # fmt: skip
def test_a_damaged_manifest_of_format_2_is_refused(fields: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(BundleIntegrityError, match="there: damaged manifest"):
        Manifest.from_json(json.dumps(as_format_2(fields) | change), "there")


def test_an_engine_of_a_later_version_is_read_and_refused_when_it_is_loaded(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["recipe"]["engine"] = "abacus"
    manifest = Manifest.from_json(json.dumps(fields), "here")
    with pytest.raises(InputError, match=r"exported for engine 'abacus'.*update edge-prm"):
        load_model(Bundle(tmp_path, manifest))


def test_what_a_template_does_survives_writing_and_reading(manifest: Manifest) -> None:
    rules = ChatRules("both", "left-newlines", ("</think>",), "2026")
    made = replace(manifest, input=replace(manifest.input, chat=rules))
    assert Manifest.from_json(made.to_json(), "here") == made


def test_what_a_template_does_is_read_from_a_manifest_of_format_2(fields: dict[str, Any], manifest: Manifest) -> None:
    rules = ChatRules("both", "left-newlines", ("</think>",), "2026")
    old = as_format_2(fields)
    old["input"] |= {**asdict(rules), "refused": ["</think>"]}
    assert Manifest.from_json(json.dumps(old), "here").input == replace(manifest.input, chat=rules)


def test_a_manifest_is_utf8_text_on_disk(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    assert read_manifest(tmp_path) == manifest
    assert "Q é" in (tmp_path / MANIFEST_NAME).read_text(encoding="utf-8")


def test_a_manifest_is_frozen(manifest: Manifest) -> None:
    with pytest.raises(FrozenInstanceError):
        manifest.context_length = 1  # type: ignore[misc]


def test_a_newer_format_says_how_to_upgrade(fields: dict[str, Any]) -> None:
    fields["format_version"] = FORMAT_VERSION + 1
    fields["input"] = "nobody knows yet"
    with pytest.raises(BundleVersionError) as caught:
        Manifest.from_json(json.dumps(fields), "there/edge_prm.json")
    for part in ("there/edge_prm.json", str(FORMAT_VERSION + 1), f"up to {FORMAT_VERSION}", "pip install -U edge-prm"):
        assert part in str(caught.value)


@pytest.mark.parametrize("version", [0, -1, None, "1", 1.0, True, []])
def test_a_format_version_that_is_no_version_is_named(fields: dict[str, Any], version: object) -> None:
    with pytest.raises(BundleIntegrityError, match="format_version is") as caught:
        Manifest.from_json(json.dumps(fields | {"format_version": version}), "there")
    assert repr(version) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '"edge-prm"', "{}", '{"format": "other"}', "[" * 100_000])
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleIntegrityError) as caught:
        Manifest.from_json(text, "there")
    assert str(caught.value).startswith("there: not ")


def damage(fields: dict[str, Any], path: str, value: object) -> str:
    *parents, last = path.split(".")
    part = fields
    for name in parents:
        part = part[int(name)] if isinstance(part, list) else part[name]
    if value is KeyError:
        del part[last]
    else:
        part[last] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((name, KeyError) for name in ("source", "head", "input", "files", "golden", "context_length", "recipe")),
        *((name, None) for name in ("source", "architecture", "head", "input", "recipe", "files", "golden")),
        *((name, "text") for name in ("source", "architecture", "files", "golden", "fidelity")),
        ("surplus", 1),
        ("source.sha256", KeyError),
        ("architecture.layers", KeyError),
        ("head.kind", "tanh"),
        ("head.default_aggregate", "median"),
        ("input.format", "xml"),
        ("input.separator_id", None),
        ("input.surplus", 1),
        ("context_length", "4096"),
        ("context_length", None),
        ("context_length", 0),
        ("architecture.layers", "2"),
        ("architecture.head_dim", -16),
        ("files.tokenizer.json", {}),
        ("golden.0.reference_rewards", KeyError),
        ("architecture.kv_heads", True),
        ("input.separator", ""),
        ("input.separator_id", 1 << 20),
        ("input.bos_id", -1),
        ("input.chat.trim_user", "middle"),
        ("input.chat.trim_assistant", None),
        ("input.chat.refused", ["</think>", ""]),
        ("input.chat.refused", "</think>"),
        ("input.chat.dated", 2026),
        ("recipe.weights.reduce_range", "no"),
        ("recipe.engine", KeyError),
        ("recipe.devices", "cpu"),
        ("recipe.tolerances.full_precision", None),
        ("golden.0.bundle_rewards", [0.1]),
        ("golden.0.reference_rewards", [0.1, float("nan")]),
        ("golden.0.reference_rewards", [0.1, 10**400]),
        ("golden.0.steps", "ab"),
        ("fidelity.tolerance", "small"),
    ],
)
def test_a_damaged_field_is_an_integrity_error(fields: dict[str, Any], path: str, value: object) -> None:
    if path == "files.tokenizer.json":
        fields["files"]["tokenizer.json"] = value
        text = json.dumps(fields)
    else:
        text = damage(fields, path, value)
    with pytest.raises(BundleIntegrityError) as caught:
        Manifest.from_json(text, "there")
    assert "there" in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a\ud800"])
def test_a_file_outside_of_the_bundle_is_refused(fields: dict[str, Any], name: str) -> None:
    fields["files"][name] = {"sha256": "00" * 32, "bytes": 1}
    with pytest.raises(BundleIntegrityError, match="file name"):
        Manifest.from_json(json.dumps(fields), "there")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx", "model.onnx.data"])
def test_a_file_that_is_not_listed_would_never_be_verified(fields: dict[str, Any], name: str) -> None:
    del fields["files"][name]
    with pytest.raises(BundleIntegrityError, match=f"files do not list {name}"):
        Manifest.from_json(json.dumps(fields), "there")


def test_a_size_that_is_none_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(BundleIntegrityError, match="head_dim -16"):
        Manifest.from_json(damage(fields, "architecture.head_dim", -16), "there")


def test_a_message_names_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises(BundleIntegrityError, match=r"golden\.0\.steps\.1 is 7"):
        Manifest.from_json(damage(fields, "golden.0.steps", ["a", 7]), "there")


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no such folder") as caught:
        read_manifest(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"no edge_prm\.json in it.*edge-prm export"):
        read_manifest(tmp_path)


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(BundleNotFoundError):
        read_manifest(file)


def test_a_manifest_that_is_not_utf8_is_damaged(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(b'{"format": "edge-prm\xff"}')
    with pytest.raises(BundleIntegrityError, match="not UTF-8"):
        read_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(BundleIntegrityError):
        read_manifest(tmp_path)
