"""Speed and memory of a bundle on this machine.

    python -m edge_prm_bench.latency BUNDLE [--threads 2] [--lengths 128,512,2048,8192] [--skip-memory]

Prefill runs on random token ids with a reward read every 50 tokens, each time from an empty sequence. Peak memory is
that of a process of its own per length. The last line is one JSON document.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import edge_prm
from edge_prm_bench.gemm import int8_gemm_gops

READ_EVERY = 50
PUSHES = 50
STEP = (
    "so the total number of apples is now the sum of both, which we add up to get the next value here, "
    "and the baskets that are still full we count once more."
)
"""About 40 tokens with its number."""
CANDIDATES = 16


@dataclass(frozen=True)
class Spread:
    """Seconds of several runs."""

    best: float
    median: float
    worst: float


@dataclass(frozen=True)
class Prefill:
    tokens: int
    tokens_per_second: float
    seconds: Spread


def spread(run: Callable[[], Any], repeats: int) -> Spread:
    """Time `run` after one warm-up."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Spread(min(seconds), statistics.median(seconds), max(seconds))


def prefill(prm: edge_prm.PRM, tokens: int, repeats: int) -> Prefill:
    """Speed of one sequence of random ids; tokens/s is of the best run, as the peers' scripts report it."""
    vocabulary = min(prm.manifest.architecture.vocabulary, 150_000)
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens)
    read_at = sorted({*range(READ_EVERY - 1, tokens, READ_EVERY), tokens - 1})

    def run() -> None:
        sequence = prm.model.start()
        sequence.extend(ids, read_at)
        sequence.close()

    seconds = spread(run, repeats)
    return Prefill(tokens, tokens / seconds.best, seconds)


def pushes(prm: edge_prm.PRM) -> dict[str, Any]:
    """Seconds and tokens of each of 50 pushes of a step of about 40 tokens."""
    seconds, new, computed = [], [], []
    with prm.session("How many apples are there in all the baskets together?") as session:
        for index in range(PUSHES):
            step = f"{index}: {STEP}"
            before, tokens = session.computed, session.tokens
            start = time.perf_counter()
            session.push(step)
            seconds.append(time.perf_counter() - start)
            new.append(session.tokens - tokens)
            computed.append(session.computed - before)
    return {
        "second_push_s": statistics.median(seconds[1:4]),
        "last_push_s": statistics.median(seconds[-3:]),
        "ratio": statistics.median(seconds[-3:]) / statistics.median(seconds[1:4]),
        "tokens_per_step": statistics.median(new[1:]),
        "most_computed_beyond_new": max(c - n for c, n in zip(computed[1:], new[1:], strict=True)),
    }


def ranking(prm: edge_prm.PRM) -> dict[str, Any]:
    """16 candidates on one prompt: tokens computed, against prompt plus candidates."""
    prompt = "A long problem. " + "There are many apples in the baskets and we count them one by one. " * 12
    candidates = [[f"Basket {i} holds {j} apples and {i * j} pears." for j in range(6)] for i in range(CANDIDATES)]
    alone = [prm.score(prompt, candidate).tokens for candidate in candidates]
    with prm.session(prompt) as session:  # the prompt's own length: that of a text less its step
        session.push("x", last=True)
        prompt_tokens = session.tokens - 1
    with edge_prm.load(prm.folder, threads=prm.threads) as fresh:
        start = time.perf_counter()
        result = fresh.rank(prompt, candidates)
        seconds = time.perf_counter() - start
    needed = prompt_tokens + sum(tokens - prompt_tokens for tokens in alone)
    return {"computed": result.computed, "prompt_plus_candidates": needed, "one_by_one": sum(alone), "seconds": seconds}


def peak_memory(bundle: Path, tokens: int, threads: int) -> float:
    """Peak resident memory, in GB, of a process that loads the bundle and scores one text of `tokens` tokens."""
    # Linux hands ru_maxrss of the parent down to a new process; VmHWM starts anew with it.
    code = (
        "import pathlib, resource, sys, numpy as np, edge_prm\n"
        f"prm = edge_prm.load({str(bundle)!r}, threads={threads})\n"
        f"prm.model.start().extend(np.random.default_rng(0).integers(0, 500, {tokens}), [{tokens - 1}])\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "lines = status.read_text().splitlines() if status.exists() else []\n"
        "high = [int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM')]\n"
        "own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        "print(high[0] if high else own)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e9


def machine(threads: int) -> dict[str, Any]:
    import onnxruntime

    return {
        "processor": _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "edge_prm": edge_prm.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return model + (", AVX512-VNNI" if "avx512_vnni" in flags else "")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--lengths", default="128,512,2048,8192", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--only-prefill", is_flag=True, help="Leave out load, memory, pushes and ranking.")
def main(bundle: Path, threads: int, lengths: str, repeats: int, only_prefill: bool) -> None:
    """Measure BUNDLE."""
    edge_prm.load(bundle, threads=threads).close()  # hashes verified, page cache warm
    start = time.perf_counter()
    prm = edge_prm.load(bundle, threads=threads)
    facts: dict[str, Any] = {"machine": machine(threads), "warm_load_s": time.perf_counter() - start, "prefill": []}
    facts["int8_gemm_gops"] = int8_gemm_gops(threads)
    for tokens in map(int, lengths.split(",")):
        if tokens > prm.manifest.context_length:
            continue
        result = prefill(prm, tokens, repeats if tokens < 4096 else 2)
        facts["prefill"].append(asdict(result))
        click.echo(f"{tokens:6d} tokens: {result.tokens_per_second:7.1f} tokens/s", err=True)
    if not only_prefill:
        facts["push"], facts["rank"] = pushes(prm), ranking(prm)
        facts["bundle_gb"] = sum(entry.bytes for entry in prm.manifest.files.values()) / 1e9
        prm.close()
        facts["peak_gb"] = {
            n: peak_memory(bundle, n, threads) for n in (2048, 8192) if n <= prm.manifest.context_length
        }
    click.echo(json.dumps(facts))


if __name__ == "__main__":
    main()
