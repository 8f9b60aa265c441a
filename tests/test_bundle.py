"""A bundle is verified before it is used: names, sizes, hashes; big files once per device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge_prm.bundle as bundle_module
from edge_prm.bundle import STAMP_NAME, Bundle, open_bundle, sha256_of, stamp_files
from edge_prm.errors import BundleIntegrityError, BundleNotFoundError, InputError
from edge_prm.manifest import MANIFEST_NAME, FileEntry, Manifest
from edge_prm.prm import load

BIG = 2000
FILES = {"tokenizer.json": b"{}" * 50, "model.onnx": b"graph" * 20, "model.onnx.data": os.urandom(BIG)}


@pytest.fixture
def folder(tmp_path: Path, manifest_for: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle folder of two small files and a big one, where a thousand bytes is big."""
    monkeypatch.setattr(bundle_module, "SMALL_FILE_BYTES", 1000)
    path = tmp_path / "bundle"
    path.mkdir()
    for name, data in FILES.items():
        (path / name).write_bytes(data)
    files = {name: FileEntry(sha256_of(path / name), len(data)) for name, data in FILES.items()}
    (path / MANIFEST_NAME).write_text(manifest_for("raw", files=files).to_json(), encoding="utf-8")
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files hashed, as they are."""
    names: list[str] = []

    def spy(path: Path, progress: object = None) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(bundle_module, "sha256_of", spy)
    return names


def edit(file: Path) -> None:
    """Change one byte and nothing else that can be seen from outside, the modification time included."""
    found = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_whole_bundle_opens(folder: Path) -> None:
    opened = open_bundle(folder)
    assert isinstance(opened, Bundle)
    assert opened.folder == folder
    assert set(opened.manifest.files) == set(FILES)
    assert open_bundle(str(folder)) == opened


def test_a_missing_bundle_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_both_sizes(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-3])
    with pytest.raises(BundleIntegrityError) as caught:
        open_bundle(folder)
    for part in (name, "truncated", f" {len(data) - 3} bytes", f" {len(data)}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleIntegrityError, match="missing") as caught:
        open_bundle(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("verify_all", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_an_edited_file_of_the_same_size_is_found_at_first_use(folder: Path, name: str, verify_all: bool) -> None:
    edit(folder / name)
    with pytest.raises(BundleIntegrityError, match="edited") as caught:
        open_bundle(folder, verify_all=verify_all)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx"])
def test_a_small_file_is_hashed_at_every_load(folder: Path, name: str) -> None:
    open_bundle(folder)
    edit(folder / name)
    with pytest.raises(BundleIntegrityError, match="edited"):
        open_bundle(folder)


def test_a_big_file_is_hashed_once(folder: Path, hashed: list[str]) -> None:
    open_bundle(folder)
    assert sorted(hashed) == sorted(FILES)
    hashed.clear()
    open_bundle(folder)
    assert "model.onnx.data" not in hashed


def test_verify_all_hashes_every_file_again(folder: Path, hashed: list[str]) -> None:
    open_bundle(folder)
    hashed.clear()
    open_bundle(folder, verify_all=True)
    assert sorted(hashed) == sorted(FILES)


def test_a_big_file_that_was_touched_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    open_bundle(folder)
    hashed.clear()
    os.utime(folder / "model.onnx.data")
    open_bundle(folder)
    assert "model.onnx.data" in hashed


def test_a_big_file_edited_behind_the_stamp_is_found(folder: Path) -> None:
    open_bundle(folder)
    edit(folder / "model.onnx.data")  # its change time gives it away
    with pytest.raises(BundleIntegrityError, match="edited"):
        open_bundle(folder)


def test_a_copy_is_hashed_anew(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    import shutil

    open_bundle(folder)
    hashed.clear()
    shutil.copytree(folder, tmp_path / "copy")  # copies the stamp and the modification times
    open_bundle(tmp_path / "copy")
    assert "model.onnx.data" in hashed


def test_a_damaged_bundle_leaves_no_stamp(folder: Path) -> None:
    edit(folder / "model.onnx.data")
    with pytest.raises(BundleIntegrityError):
        open_bundle(folder)
    assert not (folder / STAMP_NAME).exists()


def test_the_exporter_stamps_what_it_has_just_hashed(folder: Path, hashed: list[str]) -> None:
    stamp_files(folder, open_bundle(folder).manifest)
    hashed.clear()
    open_bundle(folder)
    assert "model.onnx.data" not in hashed


@pytest.mark.parametrize("stamp", ["", "{", "[]", "7", '{"model.onnx.data": 3}', '{"model.onnx.data": [1, 2, 3, "x"]}'])
def test_a_stamp_that_is_no_stamp_is_worth_nothing(folder: Path, hashed: list[str], stamp: str) -> None:
    (folder / STAMP_NAME).write_text(stamp)
    open_bundle(folder)
    assert "model.onnx.data" in hashed


def test_a_stamp_of_another_manifest_is_worth_nothing(folder: Path, hashed: list[str]) -> None:
    manifest = open_bundle(folder).manifest
    files = dict(manifest.files) | {"model.onnx.data": FileEntry("0" * 64, BIG)}
    (folder / MANIFEST_NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    with pytest.raises(BundleIntegrityError, match="edited"):
        open_bundle(folder)


def test_a_read_only_folder_opens_and_is_hashed_each_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(2):
        hashed.clear()
        open_bundle(folder)
        assert "model.onnx.data" in hashed
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, MANIFEST_NAME])


def test_progress_counts_every_byte_once(folder: Path) -> None:
    counted: list[int] = []
    open_bundle(folder, progress=counted.append)
    assert sum(counted) == sum(len(data) for data in FILES.values())


def test_nothing_is_left_beside_the_bundle(folder: Path) -> None:
    open_bundle(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, MANIFEST_NAME, STAMP_NAME])


def test_a_stamp_that_cannot_be_put_in_place_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", fail)
    open_bundle(folder)
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST_NAME}


# what is no file, and paths that engines cannot open


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    for name in FILES:
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(BundleIntegrityError, match=rf"{name}: a folder or a device"):
            open_bundle(folder)
        (folder / name).rmdir()
        (folder / name).write_bytes(data)
    open_bundle(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this needs named pipes")
def test_a_pipe_in_the_place_of_a_file_is_refused_and_never_read(folder: Path) -> None:
    for name in (*FILES, MANIFEST_NAME):
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(BundleIntegrityError, match=rf"{name}: a folder or a device"):
            open_bundle(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(data)


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edge_prm.bundle.sha256_of", refuse)
    with pytest.raises(BundleIntegrityError, match=r"cannot be read \(Permission denied\)"):
        open_bundle(folder, verify_all=True)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff", b"a\0b"])
def test_a_path_that_is_not_utf_8_is_named(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(InputError, match=r"is not UTF-8 text without zero bytes; rename the folder") as caught:
        open_bundle(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    str(caught.value).encode("ascii")


def test_a_path_of_other_letters_is_fine(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "ünï 模型")
    assert open_bundle(tmp_path / "ünï 模型").folder == tmp_path / "ünï 模型"
    assert open_bundle(os.fsencode(tmp_path / "ünï 模型")).folder == tmp_path / "ünï 模型"  # type: ignore[arg-type]


def test_numpy_integers_are_numbers_of_threads(bundle: Path) -> None:
    with load(bundle, threads=np.int64(1)) as prm:  # type: ignore[arg-type]
        assert prm.score("q", ["a"]).rewards
    with pytest.raises(InputError, match="threads is True"):
        load(bundle, threads=True)
