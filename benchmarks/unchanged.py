"""Compare two source trees bit by bit: the files that they export, and the rewards of the bundles.

    python benchmarks/unchanged.py BEFORE AFTER [--checkpoints demo,wide] [--recipes int8,Q4_K_M]

BEFORE and AFTER are two checkouts of edge-prm. BEFORE writes tiny random Qwen2 checkpoints, one for each head kind, by
the functions of its tests. Each checkout then exports them and the embedded demo in every recipe, and scores the same
texts with each bundle: in one run, step by step, and as candidates of one problem. It works in a process of its own,
which imports nothing from the other checkout. Rewards are compared as float64 bit patterns, files by SHA-256. The
manifest is compared too, but a difference of it alone is no failure: it names the version that wrote it.

Both checkouts run in this environment, so it needs the packages that they need (numpy, onnxruntime, llama-cpp-python,
ml_dtypes, gguf). Progress goes to stderr, and the last line of stdout is one JSON document. Exit code 1: something
differs, or an export or a score failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkouts import environment, variables

MANIFEST = "edge_prm.json"
THREADS = 1
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"recipe": "int8"},
    "int8-reduced": {"recipe": "int8", "reduce_range": True},
    "fp32": {"recipe": "fp32"},
    "F32": {"gguf": True, "gguf_type": "F32"},
    "F16": {"gguf": True, "gguf_type": "F16"},
    "Q8_0": {"gguf": True, "gguf_type": "Q8_0"},
    "Q4_K_M": {"gguf": True, "gguf_type": "Q4_K_M"},
}
"""Options of `export` by the name of the recipe here."""
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}  # K-quants need rows of 256 values
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "demo": {},
    "sigmoid": {"head": "sigmoid"},
    "two-class": {"head": "two_class"},
    "token-class": {"head": "token_class", "tied": False},
    "token-pair": {"head": "none"},
    "wide": {"head": "sigmoid", **WIDE},
}
"""Options of `tests/tiny.write_checkpoint`; the demo is embedded, and written by nobody."""
EXPORT_OPTIONS: dict[str, dict[str, Any]] = {"token-pair": {"token_pair": ("+", "-"), "separator": " !"}}

PROBLEM = "A farmer has 17 sheep and buys 5 more, then sells 8 of them. How many sheep does he have?"
CANDIDATES = (
    ("17 + 5 = 22", "22 - 8 = 14", "The answer is 14."),
    ("17 + 5 = 23", "23 - 8 = 15", "The answer is 15."),
    ("He sells 8 of 17, which leaves 9. " * 6, "9 + 5 = 14", "é ≠ 模 \U0001f600", "So he has 14 sheep."),
)


def write_checkpoints(folder: Path, names: Sequence[str]) -> None:
    """Write the tiny checkpoints into `folder`; runs in the process of a checkout, with its tests on the path."""
    from tiny import write_checkpoint, write_tokenizer

    tokenizer = write_tokenizer(folder / "tokenizer.json")
    for seed, (name, options) in enumerate(CHECKPOINTS.items()):  # the same checkpoint, whichever others are chosen
        if name in names and options:
            write_checkpoint(folder / name, tokenizer, seed=seed, **options)


def facts_of(source: str, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Export `source` and return SHA-256 of each file and the rewards as hexadecimal floats, or the error's text."""
    import edge_prm
    from edge_prm_export import export

    warnings.simplefilter("ignore")
    try:
        export(source, output, **options)
        with edge_prm.load(output, threads=THREADS) as prm:
            rewards = [prm.score(PROBLEM, steps).rewards for steps in CANDIDATES]
            with prm.session(PROBLEM) as session:
                rewards.append(tuple(session.push(step) for step in CANDIDATES[0]))
            rewards.append(prm.rank(PROBLEM, CANDIDATES).scores)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.iterdir())}
    return {"files": files, "rewards": [[float(reward).hex() for reward in row] for row in rewards]}


def work(folder: Path, checkpoints: Sequence[str], recipes: Sequence[str]) -> None:
    """What the process of a checkout does: print one JSON line for each checkpoint and recipe."""
    with tempfile.TemporaryDirectory(prefix="bundles-", dir=folder) as bundles:
        for checkpoint in checkpoints:
            source = str(folder / checkpoint) if CHECKPOINTS[checkpoint] else f"embedded:{checkpoint}"
            for recipe in recipes:
                options = RECIPES[recipe] | EXPORT_OPTIONS.get(checkpoint, {})
                facts = facts_of(source, Path(bundles) / f"{checkpoint}-{recipe}", options)
                print(json.dumps({"case": f"{checkpoint} {recipe}", **facts}), flush=True)


def run_checkout(tree: Path, role: str, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run this file in a process that imports edge-prm from `tree`; return its facts by case."""
    command = [sys.executable, str(Path(__file__).resolve()), str(tree), str(tree), "--role", role]
    command += ["--folder", str(folder), "--checkpoints", ",".join(options.checkpoints)]
    command += ["--recipes", ",".join(options.recipes)]
    facts = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables(tree), cwd=folder) as process:
        assert process.stdout is not None, "it is opened with a pipe"
        for line in process.stdout:
            found = json.loads(line)
            facts[found.pop("case")] = found
    if process.returncode != 0:
        raise SystemExit(f"the process of {tree} failed with exit code {process.returncode}")
    return facts


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What differs between two cases: names of files, the largest difference of a reward, errors."""
    if "error" in before or "error" in after:
        same = before.get("error") == after.get("error")
        return {} if same else {"error": {"before": before.get("error"), "after": after.get("error")}}
    found: dict[str, Any] = {}
    names = sorted(before["files"].keys() | after["files"].keys())
    if files := [name for name in names if before["files"].get(name) != after["files"].get(name)]:
        found["files"] = files
    if before["rewards"] != after["rewards"]:
        rows = zip(before["rewards"], after["rewards"], strict=True)
        pairs = [pair for left, right in rows for pair in zip(left, right, strict=True)]
        found["largest_difference"] = max(abs(float.fromhex(a) - float.fromhex(b)) for a, b in pairs)
    return found


def compare(before: Path, after: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run both checkouts and return the document that is printed."""
    with tempfile.TemporaryDirectory(prefix="edge-prm-unchanged-") as name:
        folder = Path(name)
        run_checkout(before, "write", folder, options)
        facts = {tree: run_checkout(tree, "work", folder, options) for tree in (before, after)}
    document: dict[str, Any] = {
        "cases": len(facts[before]),
        "rewards": 0,
        "same": True,
        "differences": {},
        "errors": {},
    }
    for case, found in facts[before].items():
        different = differences(found, facts[after][case])
        document["rewards"] += sum(map(len, found.get("rewards", [])))
        if "error" in found:
            document["errors"][case] = found["error"]
        if different:
            document["differences"][case] = different
        document["same"] &= "error" not in found and different in ({}, {"files": [MANIFEST]})
        print(f"{case}: {different or found.get('error') or 'the same'}", file=sys.stderr)
    return document


def _names(known: dict[str, Any], text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{', '.join(unknown)} not known; choose from {', '.join(known)}")
    return names


def main() -> None:
    """Compare two checkouts, or do the part of one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout of before")
    parser.add_argument("after", type=Path, help="checkout of after")
    parser.add_argument("--checkpoints", default=",".join(CHECKPOINTS))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--role", choices=("write", "work"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.checkpoints = _names(CHECKPOINTS, options.checkpoints)
    options.recipes = _names(RECIPES, options.recipes)
    if options.role == "write":
        write_checkpoints(options.folder, options.checkpoints)
    elif options.role == "work":
        work(options.folder, options.checkpoints, options.recipes)
    else:
        trees = options.before.resolve(), options.after.resolve()
        facts = {"environment": environment(*trees, THREADS)}  # before the work, which it must describe
        document = facts | compare(*trees, options)
        print(json.dumps(document))
        raise SystemExit(0 if document["same"] else 1)


if __name__ == "__main__":
    main()
