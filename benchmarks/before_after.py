"""Compare the speed of two checkouts on one bundle, in turns: load, texts, pushes, ranking, peak memory.

    python benchmarks/before_after.py BEFORE AFTER BUNDLE [--turns 3] [--threads 2]

Each turn is a process of its own for each checkout, so that a slow moment of the machine affects both alike. Both
checkouts read the same bundle and the same texts, and their rewards are compared bit by bit. Progress goes to stderr,
and the last line of stdout is one JSON document. Exit code 1: a reward differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from checkouts import environment, variables

STEP = "So we add the next number to what we have, {}, which gives {} in all, and go on with the next one."

_WORK = """
import json, resource, sys, time
options = json.load(sys.stdin)
start = time.perf_counter()
import edge_prm
prm = edge_prm.load(options["bundle"], threads=options["threads"])
facts, rewards = {"load_s": time.perf_counter() - start}, []
prm.score("Warm up.", options["steps"][:4])
for name, count in options["texts"].items():
    start = time.perf_counter()
    score = prm.score(f"A text of {name} steps.", options["steps"][:count])
    facts[f"tokens_per_s_of_{name}"] = score.tokens / (time.perf_counter() - start)
    rewards += score.rewards
with prm.session("A text that is pushed.") as session:
    start = time.perf_counter()
    rewards += [session.push(step) for step in options["steps"][:10]]
    facts["push_ms"] = (time.perf_counter() - start) * 100
start = time.perf_counter()
candidates = [options["steps"][at : at + 3] for at in range(0, 24, 3)]
rewards += prm.rank(" ".join(options["steps"][:6]), candidates).scores
facts["rank_s"] = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
status = list(open("/proc/self/status")) if sys.platform == "linux" else []
high = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")]
facts["peak_gb"] = (high[0] if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9
print(json.dumps({"facts": facts, "rewards": [float(reward).hex() for reward in rewards]}))
"""


def run(tree: Path, given: dict[str, Any]) -> dict[str, Any]:
    """One turn of a checkout, in a process of its own; SystemExit when it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _WORK], input=json.dumps(given), env=variables(tree), stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"the process of {tree} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(trees: dict[str, Path], given: dict[str, Any], turns: int) -> dict[str, Any]:
    """All turns of both checkouts, the order changed in every second one."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    rewards: set[tuple[str, ...]] = set()
    for turn in range(turns):
        for name in list(trees) if turn % 2 == 0 else reversed(trees):
            found = run(trees[name], given)
            runs[name].append({fact: round(value, 3) for fact, value in found["facts"].items()})
            rewards.add(tuple(found["rewards"]))
            print(f"turn {turn + 1}, {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    ratios = {
        fact: [round(new[fact] / old[fact], 3) for old, new in zip(runs["before"], runs["after"], strict=True)]
        for fact in runs["before"][0]
    }
    medians = {fact: statistics.median(values) for fact, values in ratios.items()}
    return {"same_rewards": len(rewards) == 1, "median_ratio": medians, "ratios": ratios, "runs": runs}


def main() -> None:
    """Compare two checkouts on one bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout of before")
    parser.add_argument("after", type=Path, help="checkout of after")
    parser.add_argument("bundle", type=Path, help="a bundle that both can read")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    given = {
        "bundle": str(options.bundle.resolve()),
        "threads": options.threads,
        "steps": [STEP.format(number, number * 7) for number in range(80)],
        "texts": {"20": 20, "80": 80},
    }
    facts = {"environment": environment(*trees.values(), options.threads), "bundle": options.bundle.name}
    document = facts | compare(trees, given, options.turns)
    print(json.dumps(document))
    raise SystemExit(0 if document["same_rewards"] else 1)


if __name__ == "__main__":
    main()
