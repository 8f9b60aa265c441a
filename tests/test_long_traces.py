"""The maker of long traces gives rows that the benchmark reads, of the lengths that were asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edge_prm_bench.data import read_data

pytest.importorskip("tabulate", reason='the benchmark needs tabulate: pip install "edge-prm[bench,export]"')

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "long_traces.py"


def test_long_traces_are_read_with_their_thinking(own_bundle: Path, tmp_path: Path) -> None:
    rows = [
        {"problem": f"What is {i} + {i}?", "completion": f"{i} + {i} is {2 * i}.\nSo the answer\n is {2 * i}."}
        for i in range(5)
    ]
    data, output, tokenizer = tmp_path / "rows.jsonl", tmp_path / "long.jsonl", own_bundle / "tokenizer.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, str(PROGRAM), str(tokenizer), str(data), "-o", str(output), "--traces", "3"]
    subprocess.run([*command, "--tokens", "100", "300"], check=True)
    first = output.read_bytes()
    subprocess.run([*command, "--tokens", "100", "300"], check=True)
    assert output.read_bytes() == first  # the same each time
    traces = read_data(output).traces
    assert [trace.id for trace in traces] == ["long-0", "long-1", "long-2"]
    counter = Tokenizer.from_file(str(tokenizer))
    for trace, tokens in zip(traces, (100, 200, 300), strict=True):
        steps = trace.trajectory.steps
        assert {step.kind for step in steps} == {"thinking", "response"}
        thinking = "\n\n".join(step.text for step in steps if step.kind == "thinking")
        assert tokens * 0.9 <= len(counter.encode(thinking).ids) <= tokens + 60
