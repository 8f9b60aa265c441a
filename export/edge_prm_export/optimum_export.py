"""Checkpoints that the native exporter does not know, through optimum: Llama, Mistral, Qwen3 and other decoders.

optimum traces the model with torch, so this is work for a workstation; the bundle needs neither. Its golden rewards
come from the checkpoint in torch fp32.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import edge_prm
from edge_prm.errors import CheckpointError
from edge_prm_export.checkpoint import Checkpoint
from edge_prm_export.golden import EncodedTexts, Job, Written, entry_of
from edge_prm_export.graph import GraphWriter, WeightFile
from edge_prm_export.head import RewardHead
from edge_prm_export.linears import Int8Linears
from edge_prm_export.progress import Progress
from edge_prm_export.reference import apply_head
from edge_prm_export.rewrite import Rewriter

MODEL_NAME, WEIGHTS_NAME = "model.onnx", "model.onnx.data"


def write_model(job: Job) -> Written:
    """Let optimum write its graph, rewrite it, and score the golden texts in torch fp32."""
    folder, checkpoint, head, progress = job.folder, job.checkpoint, job.head, job.progress
    (recipe,) = job.recipes
    traced = folder / "optimum"
    with progress("tracing with optimum", 1) as advance:
        _trace(checkpoint, traced)
        advance(1)
    weights = WeightFile(folder / WEIGHTS_NAME)
    try:
        graph = GraphWriter(weights)
        linears = Int8Linears(graph, reduce_range=recipe.reduce_range) if recipe.name == "int8" else None
        rewriter = Rewriter(_load(traced / MODEL_NAME), traced, checkpoint.name)
        with progress(f"writing {recipe.name} weights", checkpoint.config.layers) as advance:
            seen = -1
            for name in rewriter.write(graph, head, linears):
                layer = _layer_of(name)
                advance(max(0, layer - seen))
                seen = max(seen, layer)
            advance(max(0, checkpoint.config.layers - 1 - seen))
        (folder / MODEL_NAME).write_bytes(graph.model(edge_prm.__version__, rewriter.opset))
        files = {WEIGHTS_NAME: weights.close(), MODEL_NAME: entry_of(folder / MODEL_NAME)}
    finally:
        weights.abort()
    shutil.rmtree(traced)
    return Written(recipe, files, _references(checkpoint, head, job.golden, progress), reference="torch fp32")


def _trace(checkpoint: Checkpoint, target: Path) -> None:
    """optimum's export with past keys and values; CheckpointError with its reason when it cannot."""
    from optimum.exporters.onnx import main_export

    try:
        with _quiet():
            main_export(
                str(checkpoint.folder),
                output=str(target),
                task="text-generation-with-past",
                dtype="fp32",
                framework="pt",
                do_validation=False,
                no_post_process=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # whatever torch, transformers or optimum can raise
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: optimum cannot export model_type {checkpoint.model_type!r} ({reason})"
        ) from error


def _references(
    checkpoint: Checkpoint, head: RewardHead, golden: EncodedTexts, progress: Progress
) -> list[list[float]]:
    """Rewards of the golden texts by transformers in fp32, at the positions that the encoder names."""
    import torch
    from transformers import AutoModel

    with _quiet(), progress("scoring in torch fp32", len(golden)) as advance:
        model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32, trust_remote_code=False).eval()
        rewards = []
        for *_, text in golden:
            with torch.no_grad():
                states = model(torch.from_numpy(text.ids)[None]).last_hidden_state[0, list(text.read_at)]
            rewards.append(apply_head(head, states.numpy()).tolist())
            advance(1)
    return rewards


def _load(path: Path) -> Any:
    """The graph, its large weights still on disk."""
    import onnx

    return onnx.load(str(path), load_external_data=False)


def _layer_of(name: str) -> int:
    """The number in `/model/layers.12/...`; -1 for a node outside layers."""
    _, found, rest = name.partition("layers.")
    digits = rest.split("/", 1)[0]
    return int(digits) if found and digits.isdigit() else -1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of everything that it makes constant; errors come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
