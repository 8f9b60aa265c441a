"""Make long thinking traces of shorter solutions, for fidelity at many positions.

    python benchmarks/long_traces.py TOKENIZER DATA [DATA...] -o long.jsonl [--traces 16] [--tokens 4000 12000]

TOKENIZER: a tokenizer.json. DATA: files that `edge-prm bench` reads. Each trace solves one problem after the other in
its thinking, drawn from all files with a fixed seed, and ends with the last solution as its response. Lengths grow
evenly from the first to the second number of tokens. Then:

    edge-prm bench reference CHECKPOINT long.jsonl -o reference.jsonl
    edge-prm bench fidelity BUNDLE --data long.jsonl --reference reference.jsonl

The table "Fidelity by position" says whether rewards far into a text are as close as those at its beginning.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from edge_prm_bench.data import read_data

SEED = 20261130
QUESTION = "Solve these problems one after the other, and give the solution of the last one."
NEXT = "Next problem. "


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--tokens", type=int, nargs=2, default=(4000, 12000), metavar=("FEWEST", "MOST"))
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    files = [read_data(path, split="lines") for path in options.data]
    traces = [trace.trajectory for data in files for trace in data.traces]
    pool = [(trajectory.prompt, [step.text for step in trajectory.steps]) for trajectory in traces]
    skipped = sum(len(data.skipped) for data in files)
    print(f"{len(pool):,} solutions to draw from; {skipped:,} rows cannot be read", file=sys.stderr)
    draw = random.Random(SEED)
    fewest, most = options.tokens
    with options.output.open("w", encoding="utf-8") as out:
        for index in range(options.traces):
            tokens = fewest + (most - fewest) * index // max(1, options.traces - 1)
            thinking, answer = _joined(pool, draw, tokenizer, tokens)
            row = {"id": f"long-{index}", "problem": QUESTION, "reasoning_content": thinking, "content": answer}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _joined(
    pool: Sequence[tuple[str, list[str]]], draw: random.Random, tokenizer: Tokenizer, tokens: int
) -> tuple[str, str]:
    """Thinking of about `tokens` tokens, and the last solution."""
    pieces: list[str] = []
    count = 0
    while True:
        problem, steps = draw.choice(pool)
        added = [NEXT + problem, *steps]
        pieces += [" ".join(piece.split()) for piece in added]
        count += len(tokenizer.encode("\n\n".join(added)).ids) + 1
        if count >= tokens:
            return "\n\n".join(pieces), "\n\n".join(steps)


if __name__ == "__main__":
    main()
