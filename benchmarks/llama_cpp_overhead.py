"""What the runtime costs on top of llama.cpp: `python benchmarks/llama_cpp_overhead.py BUNDLE [--threads 2]`.

The file of a GGUF bundle is run by llama.cpp alone, as in its own benchmarks (one decode of a text, with outputs every
50 tokens), and by `PRM.score`, from text to rewards, alternately. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

import edge_prm
from edge_prm.cores import usable_cores
from edge_prm.errors import EdgePRMError, InputError, MissingExtraError
from edge_prm.manifest import Manifest
from edge_prm_bench.speed.latency import READ_EVERY

STEP = "so we add the next number, which gives us {} in all, and then we go on with the next one until we are done"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=usable_cores, show_default="one per core")
@click.option("--tokens", type=click.IntRange(min=64), default=512, show_default=True, help="Approximate text length.")
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
def main(bundle: Path, threads: int, tokens: int, turns: int) -> None:
    """Tokens per second of llama.cpp alone and of PRM.score on the same file, alternately."""
    try:
        import llama_cpp
    except ImportError:
        raise MissingExtraError("gguf", ["llama-cpp-python"]) from None
    with edge_prm.load(bundle, threads=threads, device="cpu") as prm:
        steps = _steps(prm, tokens)
        length = prm.score("Turn 0.", steps).tokens
        raw = _raw(llama_cpp, _model_file(bundle, prm.manifest), length, threads)
        seconds: dict[str, list[float]] = {"llama.cpp": [], "PRM.score": []}
        for turn in range(turns):
            seconds["llama.cpp"].append(_seconds(raw))
            prm.forget()  # no part of the text is known
            seconds["PRM.score"].append(_seconds(lambda turn=turn: prm.score(f"{turn}. turn.", steps)))  # type: ignore[misc]
    rates = {name: [length / each for each in values] for name, values in seconds.items()}
    ratios = np.array(rates["PRM.score"]) / np.array(rates["llama.cpp"])
    for name, values in rates.items():
        click.echo(f"{name}: {np.median(values):.1f} tokens/s [{min(values):.1f}, {max(values):.1f}]")
    click.echo(f"ratio: {np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}]")
    facts = {"tokens": length, "threads": threads, "turns": turns, "ratio": round(float(np.median(ratios)), 4)}
    click.echo(json.dumps(facts | {name: round(float(np.median(values)), 1) for name, values in rates.items()}))


def _model_file(bundle: Path, manifest: Manifest) -> Path:
    names = [name for name in manifest.files if name.endswith(".gguf")]
    if not names:
        raise InputError(f"{bundle} holds no GGUF file; export one with --gguf")
    return bundle / names[0]


def _steps(prm: edge_prm.PRM, tokens: int) -> list[str]:
    """Steps of about `tokens` tokens in all, each about as long as the distance of two read positions."""
    steps = [STEP.format(index) + STEP.format(index + 1) for index in range(2)]
    each = prm.score("x", steps).tokens / len(steps)
    return [STEP.format(index) + STEP.format(index + 1) for index in range(max(1, round(tokens / each)))]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _no_log(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's log would be written between the figures."""


def _raw(llama_cpp: Any, path: Path, length: int, threads: int) -> Callable[[], None]:
    """One decode of random tokens in a context of their length."""
    llama_cpp.llama_log_set(_no_log, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = length
    options.n_ubatch = 512
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    batch = _batch(llama_cpp, llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)), length)

    def run() -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise InputError(f"llama.cpp cannot run {length} tokens")
        llama_cpp.llama_synchronize(context)

    run()  # the first run touches memory
    return run


def _batch(llama_cpp: Any, vocabulary: int, length: int) -> Any:
    """Random tokens of one sequence, with outputs every READ_EVERY tokens and at the last."""
    batch = llama_cpp.llama_batch_init(length, 0, 1)
    batch.n_tokens = length
    for index, id_ in enumerate(np.random.default_rng(0).integers(0, vocabulary, length).tolist()):
        batch.token[index], batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0] = id_, index, 1, 0
        batch.logits[index] = int((index + 1) % READ_EVERY == 0 or index == length - 1)
    return batch


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    try:
        main()
    except EdgePRMError as error:
        sys.exit(f"Error: {error}")
