"""Which files of a checkpoint are read and hashed, and the sentence for each folder that is something else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from tiny import opened, set_config, write_checkpoint, write_safetensors

from edge_prm.checkpoint_files import checkpoint_files, checkpoint_sha256, reading
from edge_prm.errors import CheckpointError, CheckpointNotFoundError
from edge_prm_export.checkpoint.safetensors_file import read_header
from edge_prm_export.decoder.names import check_decoder

ml_dtypes = pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')

NORM = "model.norm.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 12345\n"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = opened(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensor_names}


# which weights


def test_model_safetensors_comes_before_an_index_as_in_transformers(write: Callable, tmp_path: Path) -> None:
    folder = write()
    tuned = tensors_of(folder)
    base = {name: values * 1.3 for name, values in tuned.items()}
    write_safetensors(folder / "model-00001-of-00001.safetensors", base)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(base, "model-00001-of-00001.safetensors")})
    )
    assert np.array_equal(opened(folder).tensor(NORM), tuned[NORM])
    transformers = pytest.importorskip("transformers", reason="the oracle: pip install torch transformers")
    theirs = transformers.AutoModel.from_pretrained(folder, dtype="float32").state_dict()["norm.weight"].numpy()
    assert np.array_equal(theirs, tuned[NORM])


def test_other_files_of_weights_are_not_read(write: Callable) -> None:
    folder = write(shards=2)
    found = tensors_of(folder)
    for name in ("consolidated.safetensors", "old_head.safetensors", "model-00009-of-00009.safetensors"):
        write_safetensors(folder / name, {NORM: np.zeros(64, dtype=np.float32), "score.weight": np.ones((2, 64), "f4")})
    assert opened(folder).tensor_names == found.keys()
    assert np.array_equal(opened(folder).tensor(NORM), found[NORM])


def test_every_missing_shard_is_named(write: Callable) -> None:
    folder = write(shards=3)
    for number in (1, 3):
        (folder / f"model-{number:05d}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model-00001-of-00003\.safetensors, model-00003.* is missing"):
        opened(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(write: Callable) -> None:
    folder = write(shards=2)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"score.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(
        CheckpointError, match=r"lacks tensor score\.weight, which model\.safetensors\.index\.json says"
    ):
        opened(folder)
    del weight_map[NORM]
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"holds tensor model\.norm\.weight, which .* does not list"):
        opened(folder)


def test_a_weight_file_of_the_configs_own_is_refused(write: Callable) -> None:
    folder = set_config(write(), transformers_weights="adapter_merged.safetensors")
    with pytest.raises(CheckpointError, match=r"names a weight file of its own \(adapter_merged\.safetensors\)"):
        opened(folder)


# which tensors


@pytest.mark.parametrize("head", ["sigmoid", "two_class"])
def test_a_decoder_that_was_saved_by_itself_is_read(tmp_path: Path, tokenizer_file: Path, head: str) -> None:
    whole = write_checkpoint(tmp_path / "whole", tokenizer_file, head)
    bare = Path(shutil.copytree(whole, tmp_path / "bare"))
    tensors = tensors_of(whole)
    write_safetensors(bare / "model.safetensors", {n.removeprefix("model."): v for n, v in tensors.items()})
    check_decoder(opened(bare))
    found = tensors_of(bare)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "language_model.", "pretrained_model."])
def test_weights_under_another_prefix_are_refused_by_its_name(write: Callable, prefix: str) -> None:
    folder = write()
    tensors = tensors_of(folder)
    write_safetensors(folder / "model.safetensors", {prefix + name: values for name, values in tensors.items()})
    with pytest.raises(CheckpointError, match=f"its weights are named {prefix}model"):
        check_decoder(opened(folder))


def test_the_first_missing_tensors_are_listed_and_the_rest_counted(write: Callable) -> None:
    names = [f"model.layers.{layer}.self_attn.{part}_proj.bias" for layer in (0, 1) for part in "qkv"]
    with pytest.raises(CheckpointError) as caught:
        check_decoder(opened(write(drop=names)))
    for part in (*sorted(names)[:1], "and 3 more is missing"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.o_proj.bias", 64),
        ("model.layers.1.self_attn.q_norm.weight", 16),
        ("model.layers.1.mlp.down_proj.bias", 64),
        ("model.layers.2.input_layernorm.weight", 64),
        ("model.norm.bias", 64),
        ("model.extra_projection.weight", 64),
        ("embed_tokens.weight", 64),
        ("layers.0.input_layernorm.weight", 64),
    ],
)
def test_a_tensor_that_an_export_would_leave_out_is_refused(
    tmp_path: Path, tokenizer_file: Path, name: str, shape: int
) -> None:
    extra = {name: np.ones(shape, dtype=np.float32)}
    source = write_checkpoint(tmp_path / "source", tokenizer_file, replace=extra)
    refused(run("export", source, "--fp32", "-o", tmp_path / "out"), name, "would leave it out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_tables_of_old_versions_of_transformers_are_no_weights(write: Callable) -> None:
    table = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(8, dtype=np.float32) for n in (0, 1)}
    check_decoder(opened(write(replace=table)))


# folders that are something else


@pytest.mark.parametrize("config", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}, {"bits": 4}, "awq"])
def test_a_quantized_checkpoint_is_named(write: Callable, config: object) -> None:
    folder = set_config(write(), quantization_config=config)
    with pytest.raises(CheckpointError, match=r"is quantized .* give the original checkpoint"):
        opened(folder)


@pytest.mark.parametrize("part", ["qweight", "weight_scale", "weight_scale_inv"])
def test_a_quantized_checkpoint_without_a_word_in_its_config_is_named(write: Callable, part: str) -> None:
    name = f"model.layers.0.mlp.up_proj.{part}"
    folder = write(replace={name: np.ones(4, dtype=np.int64)}, drop=["model.layers.0.mlp.up_proj.weight"])
    with pytest.raises(CheckpointError, match=f"is quantized .tensor {name}"):
        check_decoder(opened(folder))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_lora_adapter_is_named(write: Callable, name: str, alone: bool) -> None:
    folder = write()
    if alone:
        for path in folder.iterdir():
            path.unlink()
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"LoRA adapter .{name}.: merge it into its base model"):
        opened(folder)


@pytest.mark.parametrize("name", ["model.gguf", "no-suffix"])
def test_a_gguf_file_is_named(write: Callable, name: str) -> None:
    folder = write()
    (folder / name).write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(CheckpointError, match=r"is a GGUF file.*give the original checkpoint"):
        opened(folder / name)


def test_a_folder_of_gguf_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "model-q8_0.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(CheckpointError, match=r"model-q8_0\.gguf is a GGUF file"):
        opened(tmp_path)


def test_a_bundle_is_no_checkpoint(bundle: Path) -> None:
    with pytest.raises(CheckpointError, match="is an edge-prm bundle already"):
        opened(bundle)


def test_a_file_of_a_checkpoint_leads_to_its_folder(write: Callable) -> None:
    folder = write()
    with pytest.raises(CheckpointNotFoundError, match=f"not a folder; give the folder that it lies in: {folder}"):
        opened(folder / "model.safetensors")


def test_a_folder_around_checkpoints_names_them(tmp_path: Path, tokenizer_file: Path) -> None:
    write_checkpoint(tmp_path / "run" / "checkpoint-500", tokenizer_file)
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json is missing; it lies in checkpoint-500: give that"):
        opened(tmp_path / "run")
    write_checkpoint(tmp_path / "run" / "checkpoint-1000", tokenizer_file)
    with pytest.raises(CheckpointNotFoundError, match="in checkpoint-1000, checkpoint-500: give one of these folders"):
        opened(tmp_path / "run")
    (tmp_path / "hub" / "models--owner--name").mkdir(parents=True)
    with pytest.raises(CheckpointNotFoundError, match="it lies in models--owner--name: give that folder"):
        opened(tmp_path / "hub")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["tokenizer.model"], "tokenizer.model is there; make it from it with transformers"),
        (["vocab.json", "merges.txt"], "vocab.json and merges.txt are there; make it from them with transformers"),
        (["vocab.json"], "tokenizer.json is missing; download it"),
        ([], "tokenizer.json is missing; download it next to config.json"),
    ],
)
def test_a_missing_tokenizer_says_how_to_make_it(write: Callable, files: list[str], said: str) -> None:
    folder = write()
    (folder / "tokenizer.json").unlink()
    for name in files:
        (folder / name).write_text("x")
    with pytest.raises(CheckpointNotFoundError) as caught:
        opened(folder)
    assert said in str(caught.value)
    assert ("AutoTokenizer" in str(caught.value)) == ("transformers" in said)


POINTED = ["config.json", "tokenizer.json", "tokenizer_config.json", "reward_head.pt", "model.safetensors"]


@pytest.mark.parametrize("name", [*POINTED, "chat_template.jinja", "special_tokens_map.json"])
def test_a_git_lfs_pointer_is_named(write: Callable, name: str) -> None:
    folder = write()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        opened(folder)


def test_pointers_of_shards_and_index_are_named(write: Callable) -> None:
    folder = write(shards=3)
    for path in folder.glob("*.safetensors"):
        path.write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors, .* are Git LFS pointers"):
        opened(folder)
    (folder / "model.safetensors.index.json").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"index\.json is a Git LFS pointer"):
        opened(folder)


def test_a_pointer_that_nobody_reads_does_not_matter(write: Callable) -> None:
    folder = write()
    for name in ("pytorch_model.bin", "optimizer.pt", "consolidated.safetensors"):
        (folder / name).write_text(POINTER)
    check_decoder(opened(folder))


# files that cannot be read


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_folder_in_the_place_of_a_file_is_named(write: Callable, name: str, tmp_path: Path) -> None:
    folder = write(shards=2)
    (folder / name).unlink()
    (folder / name).mkdir()
    result = run("export", folder, "--fp32", "-o", tmp_path / "out")
    refused(result, name if name != "model.safetensors.index.json" else "model.safetensors is missing")
    assert "cannot write" not in result.stderr


def test_a_read_error_while_the_weights_are_read_names_the_file_that_was_read(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    fromfile = np.fromfile
    calls = iter(range(100))

    def fail(path: Path, **options: object) -> np.ndarray:
        if next(calls) > 20:
            raise OSError(5, "Input/output error")
        return fromfile(path, **options)

    monkeypatch.setattr(np, "fromfile", fail)
    result = run("export", folder, "--fp32", "-o", tmp_path / "out")
    refused(result, "model.safetensors cannot be read (Input/output error)")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_weight_file_that_vanishes_is_named(write: Callable) -> None:
    folder = write()
    checkpoint = opened(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*no such file"):
        checkpoint.tensor(NORM)


def test_errors_that_are_ours_go_through_a_block_of_reading(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="not wrapped"), reading(tmp_path):
        raise CheckpointNotFoundError("x", "not wrapped")


# the hash


def test_the_hash_is_that_of_sha256sum(write: Callable) -> None:
    folder = write(shards=2)
    names = sorted(path.relative_to(folder).as_posix() for path in checkpoint_files(folder))
    lines = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert checkpoint_sha256(folder) == hashlib.sha256(lines.encode()).hexdigest()
    if shutil.which("sha256sum"):
        printed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
        assert printed.decode() == lines


def test_the_hash_sees_every_byte_of_every_file_that_is_read(write: Callable) -> None:
    folder = write(shards=2)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    seen = {checkpoint_sha256(folder)}
    paths = checkpoint_files(folder)
    assert {path.suffix for path in paths} == {".json", ".safetensors", ".pt", ".jinja"}
    for count, path in enumerate(paths, start=2):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if path.name.endswith("index.json"):  # it must stay one
            data = bytearray(path.read_bytes() + b" ")
        path.write_bytes(data)
        seen.add(checkpoint_sha256(folder))
        assert len(seen) == count, path.name


def test_weights_that_differ_in_one_byte_anywhere_have_another_hash(write: Callable) -> None:
    """Samples of a large file missed most of its bytes."""
    folder = write()
    weights = folder / "model.safetensors"
    entry = read_header(weights)["model.embed_tokens.weight"]
    size = 9 << 20
    with open(weights, "ab") as file:
        file.truncate(size)  # sparse: bytes after the last tensor, which no sample would be sure to hit
    hashes = set()
    for place in (entry.start, size // 3 + 17, size // 2 + 1, size - 2):
        with open(weights, "r+b") as file:
            file.seek(place)
            file.write(b"\x01")
        hashes.add(checkpoint_sha256(folder))
    assert len(hashes) == 4


def test_files_that_nobody_reads_do_not_change_the_hash(write: Callable) -> None:
    folder = write()
    before = checkpoint_sha256(folder)
    for name in ("trainer_state.json", "README.md", "pytorch_model.bin", "consolidated.safetensors", "optimizer.pt"):
        (folder / name).write_text("{}")
    assert checkpoint_sha256(folder) == before


def test_the_hash_does_not_depend_on_the_folder(tmp_path: Path, tokenizer_file: Path) -> None:
    hashes = [opened(write_checkpoint(tmp_path / str(i), tokenizer_file, seed=i // 2)).sha256() for i in range(3)]
    assert hashes[0] == hashes[1] != hashes[2]
