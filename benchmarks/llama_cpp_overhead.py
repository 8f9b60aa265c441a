"""What the runtime costs on top of llama.cpp: `python -m edge_prm_bench.speed.raw_llama BUNDLE`.

A GGUF bundle's file is run by llama.cpp alone, as its own benchmarks do (one decode of a text, outputs every 50
tokens), and by `PRM.score`, text in and rewards out, in turns; the last line is one JSON document.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

import edge_prm
from edge_prm.backends.gguf.llama_cpp import quieten
from edge_prm.backends.gguf.model import MODEL_NAME
from edge_prm.errors import InputError, MissingExtraError
from edge_prm_bench.speed.latency import READ_EVERY

STEP = "so we add the next number, which gives us {} in all, and then we go on with the one behind it until we are done"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
@click.option(
    "--tokens", type=click.IntRange(min=64), default=512, show_default=True, help="About how long the text is."
)
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
def main(bundle: Path, threads: int, tokens: int, turns: int) -> None:
    """Tokens per second of llama.cpp alone and of PRM.score on the same file, in turns."""
    try:
        import llama_cpp
    except ImportError:
        raise MissingExtraError("gguf", ["llama-cpp-python"]) from None
    with edge_prm.load(bundle, threads=threads, device="cpu") as prm:
        if prm.manifest.backend != "gguf":
            raise InputError(f"{bundle} is for backend {prm.manifest.backend!r}; give a GGUF bundle")
        steps = _steps(prm, tokens)
        length = prm.score("Turn 0.", steps).tokens
        raw = _raw(llama_cpp, bundle / MODEL_NAME, length, threads)
        times: dict[str, list[float]] = {"llama.cpp": [], "PRM.score": []}
        for turn in range(turns):
            times["llama.cpp"].append(_seconds(raw))
            prm.forget()  # no part of the text is known
            times["PRM.score"].append(_seconds(lambda turn=turn: prm.score(f"{turn}. turn.", steps)))  # type: ignore[misc]
    rates = {name: [length / seconds for seconds in found] for name, found in times.items()}
    ratios = np.array(rates["PRM.score"]) / np.array(rates["llama.cpp"])
    for name, found in rates.items():
        click.echo(f"{name}: {np.median(found):.1f} tokens/s [{min(found):.1f}, {max(found):.1f}]")
    click.echo(f"ratio: {np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}]")
    facts = {"tokens": length, "threads": threads, "turns": turns, "ratio": round(float(np.median(ratios)), 4)}
    click.echo(json.dumps(facts | {name: round(float(np.median(found)), 1) for name, found in rates.items()}))


def _steps(prm: edge_prm.PRM, tokens: int) -> list[str]:
    """Steps whose text has about so many tokens, each about as long as the space between two read positions."""
    steps = [STEP.format(index) + STEP.format(index + 1) for index in range(2)]
    each = prm.score("x", steps).tokens / len(steps)
    return [STEP.format(index) + STEP.format(index + 1) for index in range(max(1, round(tokens / each)))]


def _raw(llama_cpp: Any, path: Path, length: int, threads: int) -> Callable[[], None]:
    """One decode of random tokens in a context of their length."""
    quieten()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = length
    options.n_ubatch = 512
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(length, 0, 1)
    batch.n_tokens = length
    ids = np.random.default_rng(0).integers(
        0, llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)), length
    )
    for index, id_ in enumerate(ids.tolist()):
        batch.token[index], batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0] = id_, index, 1, 0
        batch.logits[index] = int((index + 1) % READ_EVERY == 0 or index == length - 1)

    def run() -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise InputError(f"llama.cpp cannot run {length} tokens")
        llama_cpp.llama_synchronize(context)

    run()  # the first run touches memory
    return run


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
