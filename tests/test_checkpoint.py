"""Reading a checkpoint: what is there is read exactly, and what is missing or damaged is named."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    opened,
    set_config,
    write_checkpoint,
    write_safetensors,
)

from edge_prm.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    MissingExtraError,
    UnsupportedArchitectureError,
)
from edge_prm_export.checkpoint.files import open_checkpoint
from edge_prm_export.decoder.names import check_decoder

ml_dtypes = pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


# tensors


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_tensors_come_as_float32_from_any_dtype_and_any_shards(write: Callable, dtype: str, shards: int) -> None:
    kind = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    checkpoint = opened(write(dtype=dtype, shards=shards))
    values = np.linspace(-3, 3, 64 * 128, dtype=np.float32).reshape(64, 128).astype(kind)
    checkpoint = opened(write(dtype=dtype, shards=shards, replace={"model.layers.1.mlp.down_proj.weight": values}))
    read = checkpoint.tensor("model.layers.1.mlp.down_proj.weight", 64, 128)
    assert read.dtype == np.float32
    assert np.array_equal(read, values.astype(np.float32))


def test_shards_hold_what_one_file_holds(tmp_path: Path, tokenizer_file: Path) -> None:
    one = opened(write_checkpoint(tmp_path / "one", tokenizer_file))
    three = opened(write_checkpoint(tmp_path / "three", tokenizer_file, shards=3))
    assert one.tensor_names == three.tensor_names
    assert all(np.array_equal(one.tensor(name), three.tensor(name)) for name in one.tensor_names)


def test_rows_are_a_part_of_the_matrix(write: Callable) -> None:
    checkpoint = opened(write(dtype="bf16"))
    whole = checkpoint.tensor(EMBEDDING)
    assert np.array_equal(checkpoint.rows(EMBEDDING, 7, 12), whole[7:12])


def test_tensors_written_by_the_safetensors_library_are_read(write: Callable) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="a second writer: pip install safetensors")
    folder = write()
    tensors = {name: opened(folder).tensor(name) for name in opened(folder).tensor_names}
    library.save_file(tensors, folder / "model.safetensors")
    checkpoint = opened(folder)
    assert all(np.array_equal(checkpoint.tensor(name), values) for name, values in tensors.items())


def test_a_missing_tensor_is_named(write: Callable) -> None:
    checkpoint = opened(write(drop=["model.layers.1.mlp.up_proj.weight"]))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        checkpoint.tensor("model.layers.1.mlp.up_proj.weight")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(write: Callable) -> None:
    checkpoint = opened(write(replace={NORM: np.ones(65, dtype=np.float32)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[65\].*asks for \[64\]"):
        checkpoint.tensor(NORM, 64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(write: Callable, value: float) -> None:
    weights = np.ones(64, dtype=np.float32)
    weights[17] = value
    checkpoint = opened(write(replace={NORM: weights}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN or infinity"):
        checkpoint.tensor(NORM, 64)


def test_a_weight_that_is_no_number_is_refused_among_rows(write: Callable) -> None:
    table = np.ones((512, 64), dtype=np.float32)
    table[9, 3] = np.nan
    checkpoint = opened(write(replace={EMBEDDING: table}))
    assert checkpoint.rows(EMBEDDING, 0, 9).shape == (9, 64)
    with pytest.raises(CheckpointError, match="holds NaN"):
        checkpoint.rows(EMBEDDING, 8, 12)


def test_integers_are_no_weights_when_they_are_read(write: Callable) -> None:
    checkpoint = opened(write(replace={NORM: np.ones(64, dtype=np.int64)}))
    said = r"model\.norm\.weight has dtype I64; fp32, fp16 and bf16 are read"
    with pytest.raises(CheckpointError, match=said):
        checkpoint.tensor(NORM, 64)
    with pytest.raises(CheckpointError, match=said):
        check_decoder(checkpoint)


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "F4_OF_TOMORROW"])
def test_a_tensor_that_nobody_needs_may_have_any_dtype(write: Callable, dtype: str) -> None:
    folder = write()
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, 64 if dtype == "I64" else 8]}
    damage_header(folder / "extra.safetensors", json.dumps({"position_ids": entry}).encode())
    tensors = dict.fromkeys(opened(folder).tensor_names, "model-1.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": tensors | {"position_ids": "extra.safetensors"}})
    )
    checkpoint = opened(folder)
    check_decoder(checkpoint)
    assert checkpoint.shape("position_ids") == (8,)
    with pytest.raises(CheckpointError, match=f"has dtype {dtype}"):
        checkpoint.tensor("position_ids")


# damaged files


def damage_header(file: Path, header: bytes) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe{}",
        b"[]",
        b"7",
        b"[" * 100_000,
        json.dumps({"x": 3}).encode(),
        json.dumps({"x": {}}).encode(),
        json.dumps({"x": ENTRY | {"dtype": ["F32"]}}).encode(),
        json.dumps({"x": ENTRY | {"shape": "four"}}).encode(),
        json.dumps({"x": ENTRY | {"shape": [5]}}).encode(),
        json.dumps({"x": ENTRY | {"shape": [-2, -2]}}).encode(),
        json.dumps({"x": ENTRY | {"shape": [1 << 33, 1 << 33]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [0, 17]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [-16, 0]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [64, 80]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": ["0", "16"]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [0.0, 16.0]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [0]}}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_header_is_an_error_that_names_the_file(write: Callable, header: bytes) -> None:
    folder = write()
    damage_header(folder / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        opened(folder)


@pytest.mark.parametrize("data", [b"", b"\x10", b"\xff" * 64, bytes(64), b"<html>Not found</html>"])
def test_a_file_that_is_no_safetensors_is_refused(write: Callable, data: bytes) -> None:
    folder = write()
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        opened(folder)


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_truncated_file_is_found_before_any_work(write: Callable, missing: int) -> None:
    folder = write()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-missing])
    with pytest.raises(CheckpointError, match=r"ends before tensor .* download it again"):
        opened(folder)


def test_a_missing_shard_is_named(write: Callable) -> None:
    folder = write(shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model-00002-of-00003\.safetensors is missing"):
        opened(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", ""])
def test_an_index_may_not_point_out_of_the_folder(write: Callable, file: str) -> None:
    folder = write()
    write_safetensors(folder.parent / "model.safetensors", {"x": np.ones(1, dtype=np.float32)})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(CheckpointNotFoundError, match="is missing"):
        opened(folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', "[]", "{"])
def test_an_index_that_is_no_index_is_named(write: Callable, index: str) -> None:
    folder = write()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        opened(folder)


def test_weights_of_another_format_are_not_read(write: Callable) -> None:
    folder = write()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointNotFoundError, match=r"model\.safetensors is missing.*pytorch_model\.bin.*save_pretrained"
    ):
        opened(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors is missing \(only safetensors are read\)"):
        opened(folder)


# config.json


def test_the_config_is_read(write: Callable) -> None:
    spec = opened(write(rope_theta=1e6)).spec
    config = spec.shapes
    assert (config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim) == (2, 64, 4, 2, 16)
    assert (config.intermediate, config.context_length, spec.rope.theta) == (128, 512, 1e6)


def test_rope_theta_of_newer_configs_is_read(write: Callable) -> None:
    folder = set_config(write(), rope_theta=KeyError, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert opened(folder).spec.rope.theta == 5e5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma'"),
        ({"model_type": KeyError}, "model_type None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": "yarn"}, "yarn"),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "yarn"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"head_dim": 24}, "24"),  # the engine's attention takes multiples of 16
    ],
)
def test_an_architecture_that_is_not_exported_is_named(write: Callable, changes: dict[str, Any], said: str) -> None:
    folder = set_config(write(), **changes)
    with pytest.raises(UnsupportedArchitectureError) as caught:
        opened(folder)
    assert said in str(caught.value)
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": KeyError},
        {"vocab_size": None},
        {"num_hidden_layers": "two"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"num_hidden_layers": 0},
        {"num_key_value_heads": -2},
        {"max_position_embeddings": -1},
        {"head_dim": 15},
        {"rope_theta": float("nan")},
        {"vocab_size": float("inf")},
    ],
)
def test_a_config_of_no_model_is_refused(write: Callable, changes: dict[str, Any]) -> None:
    folder = set_config(write(), **changes)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        opened(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"qwen2"'])
def test_a_config_that_is_no_object_is_refused(write: Callable, text: str) -> None:
    folder = write()
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        opened(folder)


# sources


def test_a_folder_without_a_config_is_named(write: Callable) -> None:
    folder = write()
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"checkpoint: config\.json is missing"):
        opened(folder)


def test_a_file_is_no_checkpoint(write: Callable) -> None:
    with pytest.raises(CheckpointNotFoundError, match="it is a file, not a folder"):
        open_checkpoint(str(write() / "model.safetensors"))


@pytest.mark.parametrize("source", ["nowhere", "./nowhere/here", "/nowhere/here", "a/b/c"])
def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason='hub ids need it: pip install "edge-prm[export]"')
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        open_checkpoint(source)


@pytest.mark.parametrize("message", ["Connection refused\nTraceback\n  more", ""])
def test_a_hub_that_cannot_be_reached_is_one_clear_sentence(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason='hub ids need it: pip install "edge-prm[export]"')

    def fail(*_: object, **__: object) -> str:
        raise ConnectionError(message)

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_checkpoint("owner/name")
    text = str(caught.value)
    assert "owner/name" in text
    assert (message.split("\n")[0] or "ConnectionError") in text
    assert "\n" not in text
    assert caught.value.__suppress_context__


def test_a_hub_id_is_downloaded_at_its_revision(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason='hub ids need it: pip install "edge-prm[export]"')
    asked: list[Any] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.extend([repo, revision, allow_patterns])
        return str(write())

    monkeypatch.setattr(hub, "snapshot_download", download)
    checkpoint = open_checkpoint("owner/name", "abc")
    assert asked[:2] == ["owner/name", "abc"]
    assert not any(pattern.endswith((".py", "*", ".bin")) for pattern in asked[2])
    assert (checkpoint.name, checkpoint.revision) == ("owner/name", "checkpoint")


def test_a_missing_hub_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edge-prm\[export\]"'):
        open_checkpoint("owner/name")


def test_a_revision_of_a_folder_is_refused(write: Callable) -> None:
    with pytest.raises(CheckpointError, match="revision main goes with a hub id"):
        open_checkpoint(str(write()), "main")
