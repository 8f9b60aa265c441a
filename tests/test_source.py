"""From SOURCE to a folder: embedded names, folders of their name, and the hub's cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run

from edge_prm.demo import folder as embedded
from edge_prm.errors import CheckpointError, CheckpointNotFoundError
from edge_prm.manifest import read_manifest
from edge_prm.notices import AmbiguousSourceWarning
from edge_prm.source import find_checkpoint, name_of

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> Path:
    """The hub's cache of one repository: files are links to blobs, snapshots are commits, refs are branches."""
    root = tmp_path / "hub" / "models--owner--My-PRM"
    for commit in (COMMIT, OTHER):
        (root / "snapshots" / commit).mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    (root / "refs" / "dev").write_text(OTHER)
    for path in checkpoint_of("sigmoid").iterdir():
        shutil.copyfile(path, root / "blobs" / path.name)
        for commit in (COMMIT, OTHER):
            (root / "snapshots" / commit / path.name).symlink_to(root / "blobs" / path.name)
    return root


# embedded names


@pytest.mark.parametrize("name", ["demo", "demo-reference"])
def test_an_embedded_name_is_the_embedded_checkpoint_whatever_is_here(here: Path, name: str) -> None:
    (here / name).mkdir()
    with pytest.warns(AmbiguousSourceWarning, match=rf"for the folder {name} that is here, write \./{name}"):
        assert find_checkpoint(name).folder == embedded(name)
    assert find_checkpoint(f"embedded:{name}") == (embedded(name), name, None)
    assert find_checkpoint(f"./{name}").folder == Path(name)


@pytest.mark.filterwarnings("error")
def test_an_embedded_name_alone_gives_no_warning(here: Path) -> None:
    assert find_checkpoint("demo") == (embedded("demo"), "demo", None)
    with pytest.raises(CheckpointError, match="is embedded"):
        find_checkpoint("demo", "main")
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        find_checkpoint("embedded:nothing")


@pytest.mark.filterwarnings("error::edge_prm.notices.AmbiguousSourceWarning")
def test_the_demo_runs_where_a_folder_has_its_name(here: Path) -> None:
    pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
    for name in ("demo", "demo-reference", "demo-int8"):
        (here / name).mkdir()
    result = run("demo", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["best"] == 2


@pytest.mark.filterwarnings("error::edge_prm.notices.AmbiguousSourceWarning")
def test_the_benchmark_s_own_pair_is_the_embedded_one_too(here: Path) -> None:
    pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
    from edge_prm.progress import show_progress
    from edge_prm_bench.demo import demo_pair
    from edge_prm_bench.results import Options
    from edge_prm_export import export

    for name in ("demo", "demo-reference"):
        (here / name).mkdir()
    with demo_pair(Options(parts=("fidelity",)), export, show_progress) as (bundles, options):
        assert {read_manifest(bundle).source.name for bundle in bundles} == {"demo"}
        assert {read_manifest(path).source.name for path in options.input.references} == {"demo", "demo-reference"}


def test_export_says_which_of_two_it_takes(here: Path) -> None:
    pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
    shutil.copytree(embedded("demo-reference"), here / "demo")
    result = run("export", "demo", "--fp32", "-o", "out")
    assert result.exit_code == 0
    assert "Warning: demo is the embedded checkpoint" in result.stderr
    assert "./demo" in result.stderr
    assert read_manifest(Path("out")).head.kind == "sigmoid"
    result = run("export", "./demo", "--fp32")
    assert "embedded" not in result.stderr
    assert read_manifest(Path("demo-fp32")).head.kind == "two_class"


# the hub's cache


@pytest.mark.parametrize(
    ("part", "revision", "commit"),
    [
        ("", None, COMMIT),
        ("snapshots", None, COMMIT),
        ("", "dev", OTHER),
        ("", OTHER, OTHER),
        (f"snapshots/{OTHER}", None, OTHER),
        (f"snapshots/{OTHER}", OTHER, OTHER),
    ],
)
def test_a_folder_of_the_cache_is_named_after_its_repository(
    cache: Path, part: str, revision: str | None, commit: str
) -> None:
    found = find_checkpoint(str(cache / part), revision)
    assert (found.folder.resolve(), found.name, found.revision) == (
        cache / "snapshots" / commit,
        "owner/My-PRM",
        commit,
    )
    assert name_of(str(cache / part)) == "My-PRM"


def test_a_link_to_a_snapshot_and_the_folder_that_one_is_in_are_named_too(
    cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "link").symlink_to(cache / "snapshots" / COMMIT)
    assert find_checkpoint("link").name == "owner/My-PRM"
    monkeypatch.chdir(cache / "snapshots" / COMMIT)
    assert find_checkpoint(".").name == "owner/My-PRM"


def test_the_only_snapshot_is_taken_without_a_branch(cache: Path) -> None:
    (cache / "refs" / "main").unlink()
    with pytest.raises(CheckpointNotFoundError, match=f"no snapshot of revision main; give one of .*{COMMIT}, {OTHER}"):
        find_checkpoint(str(cache))
    shutil.rmtree(cache / "snapshots" / OTHER)
    assert find_checkpoint(str(cache)).revision == COMMIT


def test_a_snapshot_that_is_not_there_is_never_another_one(cache: Path) -> None:
    (cache / "refs" / "main").write_text("c" * 40)
    with pytest.raises(CheckpointNotFoundError, match="no snapshot of revision main"):
        find_checkpoint(str(cache))
    with pytest.raises(CheckpointNotFoundError, match="no snapshot of revision v2"):
        find_checkpoint(str(cache), "v2")
    with pytest.raises(CheckpointError, match="revision dev goes with a hub id"):
        find_checkpoint(str(cache / "snapshots" / COMMIT), "dev")
    shutil.rmtree(cache / "snapshots")
    (cache / "snapshots").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="holds no snapshot; give the hub id owner/My-PRM"):
        find_checkpoint(str(cache))


def test_a_bundle_of_a_cached_checkpoint_has_the_name_of_the_repository(cache: Path, here: Path) -> None:
    pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
    assert run("export", cache / "snapshots" / COMMIT, "--fp32").exit_code == 0
    source = read_manifest(here / "My-PRM-fp32").source
    assert (source.name, source.revision) == ("owner/My-PRM", COMMIT)


@pytest.mark.parametrize(
    ("source", "name"),
    [("owner/Some-PRM", "Some-PRM"), ("demo", "demo"), ("embedded:demo-reference", "demo-reference")],
)
def test_a_source_has_a_name_before_it_is_opened(here: Path, source: str, name: str) -> None:
    (here / "demo").mkdir()
    assert name_of(source) == name
