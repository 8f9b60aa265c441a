"""Score data once with a full-precision checkpoint in torch, and store the rewards in a small file.

Only this needs a machine with enough memory for the checkpoint; every later comparison needs the file only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_prm.bundle import sha256_of
from edge_prm.encode import Encoded
from edge_prm.errors import ContextLengthError, InputError
from edge_prm_bench.data import Data, Trace
from edge_prm_bench.reference.file import (
    Provenance,
    Reference,
    ReferenceWriter,
    Row,
    ScoredCheckpoint,
    ScoredData,
    TorchRun,
    read_reference,
    scored_ids,
)
from edge_prm_bench.reference.torch_model import Described, TorchPRM
from edge_prm_bench.speed.device import installed_versions

DTYPES = ("fp32", "bf16")
DEVICES = ("cpu", "cuda")
_PACKAGES = ("torch", "transformers", "tokenizers", "edge-prm")


def make_reference(
    described: Described,
    data: Data,
    output: Path,
    *,
    dtype: str = "fp32",
    device: str = "cpu",
    batch_size: int = 1,
    threads: int | None = None,
    progress: Any = None,
) -> Reference:
    """Score every trace of `data` and return the complete file; an interrupted run is resumed.

    `dtype`: of the weights, one of DTYPES. `batch_size`: texts in one run. `threads`: of torch, None for its default.

    A trace is skipped, with its reason, when its text is longer than the checkpoint's context, when transformers'
    tokenizer gives other tokens, or when a reward is NaN or infinite. InputError when `output` was begun with another
    checkpoint, input format, data, dtype or batch size; OutputError when it cannot be written.
    """
    if dtype not in DTYPES or device not in DEVICES or batch_size < 1:
        raise InputError(f"dtype {dtype!r}, device {device!r}, batch size {batch_size!r}: no such reference")
    run = TorchRun(dtype, device, batch_size, installed_versions(_PACKAGES))
    scored_data = ScoredData(data.name, data.sha256, data.split, len(data.traces))
    provenance = Provenance(_scored_checkpoint(described), run, scored_data)
    done = scored_ids(output, provenance)
    remaining = [trace for trace in data.traces if trace.id not in done]
    model = TorchPRM(described, dtype, device, threads) if remaining else None  # may fail: before the file is created
    with ReferenceWriter(output, provenance) as writer:
        if model is not None:
            with progress("scoring in full precision", len(remaining)) as advance:
                for rows in _rows(model, remaining, batch_size):
                    writer.write(rows)
                    advance(len(rows))
    return read_reference(output)


def _scored_checkpoint(described: Described) -> ScoredCheckpoint:
    manifest = described.manifest
    return ScoredCheckpoint(
        name=manifest.source.name,
        sha256=manifest.source.sha256,
        tokenizer_sha256=sha256_of(described.tokenizer_file),
        head=manifest.head.kind,
        tokens=manifest.head.tokens,
        input=manifest.input.flat(),
        context_length=manifest.context_length,
        compared_with=described.tokenizer,
    )


def _rows(model: TorchPRM, traces: Sequence[Trace], batch_size: int) -> Iterator[list[Row]]:
    """Yield the rows of each batch; a trace that cannot be scored has its reason."""
    for start in range(0, len(traces), batch_size):
        rows: dict[str, Row] = {}
        encoded: dict[str, Encoded] = {}
        for trace in traces[start : start + batch_size]:
            try:
                encoded[trace.id] = model.encode(trace.trajectory)
            except ContextLengthError as error:
                reason = f"{error.tokens} tokens, and the checkpoint has {error.context_length} positions"
                rows[trace.id] = Row(trace.id, None, error.tokens, reason)
            except InputError as error:
                rows[trace.id] = Row(trace.id, None, skipped=str(error))
        if encoded:
            rewards = model.rewards(list(encoded.values()))
            for (id_, text), row in zip(encoded.items(), rewards, strict=True):
                rows[id_] = _row(id_, row, len(text.ids))
        yield [rows[trace.id] for trace in traces[start : start + batch_size]]


def _row(id_: str, rewards: list[float], tokens: int) -> Row:
    """The rewards of a trace; a trace with a reward that is not finite is skipped, since JSON has no NaN."""
    wrong = next((step for step, reward in enumerate(rewards, start=1) if not math.isfinite(reward)), None)
    if wrong is None:
        return Row(id_, tuple(rewards), tokens)
    return Row(id_, None, tokens, f"the reward of step {wrong} is {rewards[wrong - 1]}: the model's numbers overflow")
