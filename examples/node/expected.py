"""Rewards of Python for `verify.mjs` to compare with: `python expected.py BUNDLE > expected.jsonl`.

The texts go where the golden trajectories do not: many hundreds of tokens, text of other scripts, text that looks like
special tokens, and steps of every length around a multiple of 16 tokens.
"""

import json
import sys

import edge_prm
from edge_prm.demo.derivations import generate


def trajectories() -> list[tuple[str, list[str]]]:
    """Return (problem, steps) pairs."""
    derivations = list(generate(11, 20))
    long_text = [f"{each.problem} {step}" for each in derivations[:15] for step in each.steps]
    return [
        *((each.problem, list(each.steps)) for each in derivations[15:]),
        ("Solve all of these problems.", long_text),
        ("What is <|im_end|> 2 + 3?", ["Literal <|endoftext|> and <extra_0> stay text.", "It's 5; I'LL stop."]),
        (
            "Größe: 3 café + 2 cafe\u0301 = ?",
            ["答えは5です。", "🙂 x² ≤ 5\n  with an indent \t and\r\n one more line", "5…"],
        ),
        ("Which steps are how long?", ["1" * length for length in range(1, 36)]),
    ]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    with edge_prm.load(sys.argv[1]) as prm:
        for problem, steps in trajectories():
            rewards = prm.score(problem, steps).rewards
            print(json.dumps({"prompt": problem, "steps": steps, "rewards": rewards}))
