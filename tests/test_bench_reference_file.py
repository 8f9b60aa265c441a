"""The file of a reference: what is written is read, a torn line is cut, and another run never continues it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_runs import rows_of, write_rows

from edge_prm.errors import InputError, OutputError
from edge_prm_bench.data import read_data
from edge_prm_bench.reference.file import (
    Provenance,
    ReferenceWriter,
    Row,
    ScoredCheckpoint,
    ScoredData,
    TorchRun,
    read_reference,
)

CHECKPOINT = ScoredCheckpoint(
    "demo", "c" * 64, "d" * 64, "token_pair", tokens=("+", "-"), input={"format": "raw", "bos_id": None},
    context_length=512, compared_with="a tokenizer",
)  # fmt: skip
RUN = TorchRun("fp32", "cpu", 1, versions={"torch": "2.0"})
DATA = ScoredData("data.jsonl", "e" * 64, "blank", 3)
PROVENANCE = Provenance(CHECKPOINT, RUN, DATA)
HEADER = PROVENANCE.journal_header().line()
ROWS = [Row("a", (0.25, 0.1), 12), Row("b", None, 9000, "9000 tokens"), Row("ç", (0.5,), 3)]


def complete_text(tmp_path: Path) -> str:
    """The file of a run that was not interrupted."""
    with ReferenceWriter(tmp_path / "complete.jsonl", PROVENANCE) as writer:
        writer.write(ROWS)
    return (tmp_path / "complete.jsonl").read_text(encoding="utf-8")


def test_the_header_is_flat(tmp_path: Path) -> None:
    """As version 2 of the format has always been: files that exist are read, and continued."""
    assert (
        '{"format": "edge-prm-reference", "format_version": 2, "checkpoint": "demo", '
        f'"checkpoint_sha256": "{"c" * 64}", "tokenizer_sha256": "{"d" * 64}", "head": "token_pair", "dtype": "fp32", '
        f'"device": "cpu", "batch_size": 1, "data": "data.jsonl", "data_sha256": "{"e" * 64}", "split": "blank", '
        '"traces": 3, "versions": {"torch": "2.0"}, "tokens": ["+", "-"], '
        '"input": {"format": "raw", "bos_id": null}, "context_length": 512, "compared_with": "a tokenizer"}\n'
    ) == HEADER
    assert complete_text(tmp_path).splitlines()[1:] == [
        '{"id": "a", "tokens": 12, "rewards": [0.25, 0.1]}',
        '{"id": "b", "tokens": 9000, "skipped": "9000 tokens"}',
        '{"id": "\\u00e7", "tokens": 3, "rewards": [0.5]}',
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE)
    writer.write(ROWS[:2])
    writer.write(ROWS[2:])
    writer.close()
    reference = read_reference(tmp_path / "r.jsonl")
    assert reference.provenance == PROVENANCE
    assert list(reference.rows) == ROWS


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_file_cut_anywhere_is_continued_after_its_last_complete_line(tmp_path: Path, cut: int) -> None:
    path, complete = tmp_path / "r.jsonl", complete_text(tmp_path)
    path.write_bytes(complete.encode()[:-cut])
    with ReferenceWriter(path, PROVENANCE) as writer:
        writer.write(row for row in ROWS if row.id not in writer.done)
    assert path.read_text(encoding="utf-8") == complete


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bf16"}, {"checkpoint_sha256": "f" * 64}, {"data_sha256": "f" * 64}, {"batch_size": 4},
        {"head": "sigmoid"}, {"tokens": ["yes", "no"]}, {"input": {"format": "raw", "bos_id": 1}},
        {"context_length": 100}, {"split": "lines"}, {"versions": {"torch": "2.1"}}, {"compared_with": "none"},
    ],
)  # fmt: skip
def test_a_file_of_another_run_is_not_continued(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "r.jsonl"
    ReferenceWriter(path, PROVENANCE).close()
    before = path.read_bytes()
    other = Provenance.from_header(json.loads(HEADER) | change)
    with pytest.raises(InputError, match=f"was begun with {next(iter(change))}"):
        ReferenceWriter(path, other)
    assert path.read_bytes() == before


def test_a_reference_of_an_older_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(HEADER.replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(InputError, match="has format version 1 and this edge-prm reads 2; write it again"):
        read_reference(path)


@pytest.mark.parametrize("text", ["my notes, without an end", "my notes\n", "\n", "{}\n", '{"format": "x"'])
def test_another_kind_of_file_is_never_written_to(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"r\.jsonl"):
        ReferenceWriter(path, PROVENANCE)
    assert path.read_text() == text


@pytest.mark.parametrize("length", range(0, 400, 23))
def test_a_header_that_was_cut_anywhere_is_written_again(tmp_path: Path, length: int) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(HEADER.encode()[:length])
    ReferenceWriter(path, PROVENANCE).close()
    assert path.read_text() == HEADER


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_neither_written_nor_read(tmp_path: Path, reward: float) -> None:
    path = tmp_path / "r.jsonl"
    with ReferenceWriter(path, PROVENANCE) as writer, pytest.raises(ValueError, match="not JSON compliant"):
        writer.write([Row("a", (0.5, reward), 3)])
    path.write_text(HEADER + json.dumps({"id": "a", "tokens": 3, "rewards": [0.5, reward]}) + "\n")
    with pytest.raises(InputError, match="damaged"):
        read_reference(path)


def test_two_runs_to_one_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no locks of this kind")
    with ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE) as first:
        first.write(ROWS[:1])
        with pytest.raises(InputError, match="is being written by another process"):
            ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE)
        first.write(ROWS[1:])
    assert list(read_reference(tmp_path / "r.jsonl").rows) == ROWS
    with ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE) as again:
        assert again.done == {row.id for row in ROWS}


@pytest.mark.parametrize(("name", "said"), [("", "it is a folder"), ("missing/r.jsonl", "there is no folder")])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        ReferenceWriter(tmp_path / name, PROVENANCE)


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "[]\n", "no\n", '{"format": "edge-prm-reference"}\n'])
def test_another_kind_of_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"r\.jsonl"):
        read_reference(path)


def test_a_reference_of_other_data_is_refused(tmp_path: Path) -> None:
    ReferenceWriter(tmp_path / "r.jsonl", PROVENANCE).close()
    with pytest.raises(InputError, match="was made from other data"):
        read_reference(tmp_path / "r.jsonl").rewards_for(
            read_data(write_rows(tmp_path / "data.jsonl", rows_of(24, "pens")))
        )


def test_an_incomplete_reference_names_the_command_that_completes_it(tmp_path: Path) -> None:
    data = read_data(write_rows(tmp_path / "data.jsonl", rows_of(24, "pens")))
    ReferenceWriter(tmp_path / "r.jsonl", replace(PROVENANCE, data=replace(DATA, sha256=data.sha256))).close()
    with pytest.raises(InputError, match="24 of 24 traces are missing; run the same"):
        read_reference(tmp_path / "r.jsonl").rewards_for(data)
