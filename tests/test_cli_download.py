"""Before a checkpoint is downloaded: what is said, what is asked, and when nothing is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import refused, run
from conftest import REDUCED

from edge_prm.cli import download
from edge_prm.cli.download import pending_download
from edge_prm.source import DEFAULT_SOURCE

hub = pytest.importorskip("huggingface_hub", reason='this needs the hub: pip install "edge-prm[export]"')

COMMIT = "a" * 40
ID = "owner/tiny-prm"
FILES = {
    "model.safetensors": (3_000_000_000, "1" * 64),
    "config.json": (700, ""),
    "tokenizer.json": (7_000_000, "2" * 64),
    "pytorch_model.bin": (9_000_000_000, "3" * 64),
    "onnx/model.safetensors": (9_000_000_000, "4" * 64),
}
"""Name -> bytes and the hash of its content: the last two are not downloaded."""


def sibling(name: str, size: int, sha256: str) -> SimpleNamespace:
    lfs = SimpleNamespace(sha256=sha256) if sha256 else None
    return SimpleNamespace(rfilename=name, size=size, lfs=lfs, blob_id=None if lfs else f"blob-{name}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return folder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that knows the files of ID."""

    def model_info(self: Any, source: str, **options: Any) -> SimpleNamespace:
        assert (source, options["files_metadata"]) == (ID, True)
        return SimpleNamespace(sha=COMMIT, siblings=[sibling(name, *facts) for name, facts in FILES.items()])

    monkeypatch.setattr(hub.HfApi, "model_info", model_info)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.HfApi, "model_info", fail)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """The sources that were downloaded: each is the tiny checkpoint."""
    sources: list[str] = []

    def fetch(source: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise hub.errors.LocalEntryNotFoundError("not in the cache")
        sources.append(source)
        return str(shutil.copytree(checkpoint_of("sigmoid"), tmp_path / COMMIT))

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    return sources


def export(out: Path, *options: object, source: str = ID, **more: Any) -> Any:
    return run("export", source, "-o", out, *["--reduce-range"] * REDUCED, *options, **more)


# what is to be downloaded


@pytest.mark.usefixtures("answers")
def test_the_size_is_that_of_the_files_that_are_read(cache: Path) -> None:
    pending = pending_download(ID)
    assert pending == (ID, 3_007_000_700, True, cache)
    assert str(pending) == f"{ID} is not in the Hub cache; it needs a download of 3.0 GB to {cache}"


@pytest.mark.usefixtures("answers")
def test_files_that_the_cache_holds_are_not_counted(cache: Path) -> None:
    root = cache / "models--owner--tiny-prm"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / ("1" * 64)).write_text("as a blob")
    assert pending_download(ID).size == 7_000_700
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "snapshots" / COMMIT / "tokenizer.json").write_text("in a snapshot, as where there are no links")
    assert pending_download(ID).size == 700
    (root / "blobs" / "blob-config.json").write_text("{}")
    assert pending_download(ID) is None


@pytest.mark.usefixtures("unreachable", "cache", "downloads")
def test_without_an_answer_the_size_of_the_default_is_known() -> None:
    assert "a download of about 3.1 GB" in str(pending_download(DEFAULT_SOURCE))
    assert "a download of unknown size" in str(pending_download(ID))


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    ("files", "complete"),
    [
        (["config.json", "model.safetensors"], True),
        (["config.json"], False),
        (["model.safetensors"], False),
        (["config.json", "a.safetensors", "b.safetensors", "index"], True),
        (["config.json", "a.safetensors", "index"], False),
    ],
)
def test_without_an_answer_a_complete_snapshot_is_enough(cache: Path, files: list[str], complete: bool) -> None:
    root = cache / "models--owner--tiny-prm"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for name in files:
        (snapshot / name.replace("index", "model.safetensors.index.json")).write_text(
            json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
        )
    assert (pending_download(ID) is None) == complete


@pytest.mark.usefixtures("cache")
def test_a_hub_id_that_does_not_exist_is_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise hub.errors.RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(hub.HfApi, "model_info", missing)
    monkeypatch.setattr(hub, "snapshot_download", missing)
    refused(export(tmp_path / "out"), f"checkpoint {ID}: no such folder, and the download from the hub failed")


@pytest.mark.parametrize("source", ["demo", "embedded:demo-reference", "./nowhere", "nowhere", "a/b/c", "~/x"])
def test_what_is_no_hub_id_never_asks_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    assert pending_download(source) is None


def test_a_folder_that_looks_like_a_hub_id_never_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ID).mkdir(parents=True)
    assert pending_download(ID) is None


# the question


@pytest.mark.usefixtures("answers", "cache")
def test_without_a_terminal_a_download_needs_yes(tmp_path: Path, downloads: list[str]) -> None:
    refused(export(tmp_path / "out"), f"{ID} is not in the Hub cache", "3.0 GB", str(tmp_path / "hub"), "give --yes")
    assert downloads == []
    result = export(tmp_path / "out", "--yes", "--json")
    assert result.exit_code in (0, 1), result.output
    assert downloads == [ID]
    assert result.stderr.splitlines()[0] == str(pending_download(ID))
    assert json.loads(result.stdout)["bundle"] == str(tmp_path / "out")


@pytest.mark.usefixtures("unreachable", "cache")
def test_export_alone_takes_the_default_checkpoint_and_says_so_first(
    tmp_path: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("export", "--int8"), f"{DEFAULT_SOURCE} is not in the Hub cache", "about 3.1 GB", "--yes")
    result = run("export", "--int8", "-y")
    assert result.exit_code in (0, 1), result.output
    assert downloads == [DEFAULT_SOURCE]
    assert (tmp_path / "ReasonFlux-PRM-1.5B-int8").is_dir()


@pytest.mark.usefixtures("answers", "cache")
@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("\n", True), ("n\n", False), ("", False)])
def test_a_terminal_is_asked(
    tmp_path: Path, downloads: list[str], answer: str, agreed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    result = export(tmp_path / "out", stdin=answer)
    assert downloads == [ID] * agreed
    assert str(pending_download(ID)) in result.stderr
    if agreed:
        assert (tmp_path / "out").is_dir()
    else:
        refused(result, "nothing was downloaded")
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("answers")
def test_nothing_is_asked_where_the_cache_holds_the_checkpoint(
    tmp_path: Path, cache: Path, downloads: list[str]
) -> None:
    blobs = cache / "models--owner--tiny-prm" / "blobs"
    blobs.mkdir(parents=True)
    for name in ("1" * 64, "2" * 64, "blob-config.json"):
        (blobs / name).write_text("")
    result = export(tmp_path / "out")
    assert result.exit_code in (0, 1), result.output
    assert "Hub cache" not in result.stderr


@pytest.mark.usefixtures("answers", "cache")
def test_the_reference_of_the_benchmark_asks_too(tmp_path: Path, downloads: list[str]) -> None:
    pytest.importorskip("torch", reason='this needs torch: pip install "edge-prm[reference]"')
    (tmp_path / "rows.jsonl").write_text('{"problem": "P", "steps": ["a"]}\n')
    arguments = ("bench", "reference", ID, tmp_path / "rows.jsonl", "-o", tmp_path / "r.jsonl")
    refused(run(*arguments), f"{ID} is not in the Hub cache", "give --yes")
    assert run(*arguments, "--yes", "--threads", 1).exit_code == 0
    assert downloads == [ID]


def test_without_the_library_of_the_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(run("export", "owner/x"), 'pip install "edge-prm[export]"')


QUESTION = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where pytest runs in the background
signal.alarm(120)  # a question that is never answered ends the test
from edge_prm import interrupts
from edge_prm.cli import download
from edge_prm.cli.main import main
download.pending_download = lambda *_: download.Download("owner/x", 5, True, Path("/cache"))
interrupts.run(lambda: main(["export", "owner/x"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(
    ("typed", "code", "said"), [(b"n\n", 2, "nothing was downloaded"), (b"\x03", 130, "Interrupted")]
)
def test_a_real_terminal_is_asked(typed: bytes, code: int, said: str) -> None:
    """A "no", and Ctrl-C at the question."""
    import pty

    process, terminal = pty.fork()
    if process == 0:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        os.execv(sys.executable, [sys.executable, "-c", QUESTION])
    shown = b""
    answered = False
    with contextlib.suppress(OSError):  # Linux ends a terminal's output with an error
        while data := os.read(terminal, 1024):
            shown += data
            if b"[Y/n]" in shown and not answered:
                os.write(terminal, typed)
                answered = True
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code, shown
    text = shown.decode()
    assert "owner/x is not in the Hub cache; it needs a download of 0.1 MB to /cache" in text
    assert said in text
    assert "Traceback" not in text
