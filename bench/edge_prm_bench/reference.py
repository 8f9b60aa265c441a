"""Score data once with a full-precision checkpoint in torch, and keep the rewards in a small file.

The 7B needs a machine that holds it; every comparison afterwards needs the file only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_prm.bundle import sha256_of
from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import CheckpointNotFoundError, InputError
from edge_prm.source import checkpoint_sha256, find_checkpoint
from edge_prm_bench.data import Data, Trace
from edge_prm_bench.device import installed_versions
from edge_prm_bench.reference_file import Provenance, Reference, ReferenceWriter, Row, done_ids, read_reference
from edge_prm_bench.torch_model import TorchPRM, head_kind

DTYPES = ("fp32", "bf16")
DEVICES = ("cpu", "cuda")


def make_reference(
    source: str,
    data: Data,
    output: Path,
    *,
    dtype: str = "fp32",
    device: str = "cpu",
    batch_size: int = 1,
    threads: int | None = None,
    progress: Any = None,
) -> Reference:
    """Score every trace of `data` and return the whole file; a file that was begun is finished.

    A text longer than the checkpoint's positions is marked, not scored; so is one whose steps cannot be told apart.
    InputError when `output` was begun with another checkpoint, data, dtype or batch size.
    """
    if dtype not in DTYPES or device not in DEVICES or batch_size < 1:
        raise InputError(f"dtype {dtype!r}, device {device!r}, batch size {batch_size!r}: no such reference")
    found = find_checkpoint(source)
    if not (found.folder / TOKENIZER_NAME).is_file():
        raise CheckpointNotFoundError(found.name, f"{TOKENIZER_NAME} is missing")
    provenance = Provenance(
        checkpoint=found.name,
        checkpoint_sha256=checkpoint_sha256(found.folder),
        tokenizer_sha256=sha256_of(found.folder / TOKENIZER_NAME),
        head=head_kind(found.folder),
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        data=data.name,
        data_sha256=data.sha256,
        split=data.split,
        traces=len(data.traces),
        versions=installed_versions(("torch", "transformers", "tokenizers", "edge-prm")),
    )
    done = done_ids(output, provenance)
    left = [trace for trace in data.traces if trace.id not in done]
    model = TorchPRM(found.folder, dtype, device, threads) if left else None  # before the file is begun: it may fail
    writer = ReferenceWriter(output, provenance)
    try:
        if model is not None:
            with progress("scoring in full precision", len(left)) as advance:
                for rows in _rows(model, left, batch_size):
                    writer.write(rows)
                    advance(len(rows))
    finally:
        writer.close()
    return read_reference(output)


def _rows(model: TorchPRM, traces: Sequence[Trace], batch_size: int) -> Iterator[list[Row]]:
    """Yield the rows of one batch after the other; what cannot be scored comes with its reason."""
    for start in range(0, len(traces), batch_size):
        rows: dict[str, Row] = {}
        encoded: dict[str, tuple[list[int], list[int]]] = {}
        for trace in traces[start : start + batch_size]:
            try:
                ids, read_at = model.encode(trace.trajectory)
            except InputError as error:
                rows[trace.id] = Row(trace.id, None, skipped=str(error))
                continue
            if len(ids) > model.context_length:
                reason = f"{len(ids)} tokens, and the checkpoint has {model.context_length} positions"
                rows[trace.id] = Row(trace.id, None, len(ids), reason)
                continue
            encoded[trace.id] = (ids, read_at)
        if encoded:
            rewards = model.rewards(list(encoded.values()))
            for (id_, (ids, _)), row in zip(encoded.items(), rewards, strict=True):
                rows[id_] = Row(id_, tuple(row), len(ids))
        yield [rows[trace.id] for trace in traces[start : start + batch_size]]
