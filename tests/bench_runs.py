"""Rows, references and runs of `edge-prm bench`, for its tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import run

from edge_prm.manifest import read_manifest
from edge_prm.prm import load
from edge_prm_bench.data import read_data
from edge_prm_bench.reference.file import Provenance, ReferenceWriter, Row, ScoredCheckpoint, ScoredData, TorchRun

PROBLEM = "Ada has 4 pens and buys 3 boxes of 2. How many pens?"
LONG = "6 + 4 = 10. " * 30


def needs(*modules: str) -> None:
    """Skip the tests of a module where one of these is not installed."""
    for module in modules:
        pytest.importorskip(module, reason=f'the benchmark needs {module}: pip install "edge-prm[bench,export]"')


@contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress that is not shown."""
    yield lambda done: None


def rows_of(count: int, word: str, long: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Labelled rows without ids: rows of two files then have the same ids."""
    return [
        {
            "problem": f"{PROBLEM} {word} {index}",
            "steps": [f"{index} {word}", LONG if index in long else "4 + 6 = 10.", "The answer is 10."][
                : 2 + index % 2
            ],
            "label": -1 if index % 2 else 1,
        }
        for index in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON Lines; a row that is a string is written as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def reference_of(
    bundle: Path, data: Path, path: Path, shift: float, *, dtype: str = "fp32", rows: int | None = None,
    limit: int | None = None, skip: Sequence[int] = (),
) -> Path:  # fmt: skip
    """A reference file whose rewards are those of the bundle plus `shift`; `rows`: only so many are written."""
    manifest, read = read_manifest(bundle), read_data(data, limit=limit)
    provenance = Provenance(
        ScoredCheckpoint(
            manifest.source.name, manifest.source.sha256, manifest.files["tokenizer.json"].sha256, manifest.head.kind
        ),
        TorchRun(dtype, "cpu", 1),
        ScoredData(read.name, read.sha256, read.split, len(read.traces)),
    )
    with ReferenceWriter(path, provenance) as writer, load(bundle, threads=1) as prm:
        for index, trace in enumerate(read.traces[:rows]):
            rewards = next(iter(prm.score_many([trace.trajectory]))).rewards
            shifted = None if index in skip else tuple(reward + shift for reward in rewards)
            writer.write([Row(trace.id, shifted, 9, "too long" if index in skip else "")])
    return path


def facts_of(result: Result) -> dict[str, Any]:
    """The JSON document that a run printed."""
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert facts["schema"] == "edge-prm-bench/3"
    return facts


def measure(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """Run `edge-prm bench` with these arguments; return its JSON document."""
    result = run("bench", *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return facts_of(result)
