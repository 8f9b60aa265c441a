"""Checkpoints of no family that the native exporter knows, through optimum: Gemma, Phi, OLMo and other decoders.

optimum traces the model with torch, so this is work for a workstation; the bundle needs neither. Its golden rewards
come from the checkpoint in torch fp32.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import edge_prm
from edge_prm.errors import CheckpointError, ContextLengthError
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.tokenizer import open_tokenizer, token_id
from edge_prm_export.job import ExportJob, ExportResult, file_entry
from edge_prm_export.onnx.int8 import Int8Linears
from edge_prm_export.onnx.writer import GraphWriter, WeightFile
from edge_prm_export.optimum.rewrite import Rewriter
from edge_prm_export.optimum.torch_checkpoint import PROBES, OwnTokenizer, decoder_of, load_causal_lm, quiet

MODEL_NAME, WEIGHTS_NAME = "model.onnx", "model.onnx.data"


def write_model(job: ExportJob) -> ExportResult:
    """Let optimum write its graph, rewrite it, and score the golden texts in torch fp32."""
    folder, checkpoint, head, progress = job.folder, job.checkpoint, job.head, job.progress
    (recipe,) = job.recipes
    traced = folder / "optimum"
    _check_tokens(job)
    model = load_causal_lm(checkpoint, logits=head.reads_logits)
    references = _references(model, job)  # first: tracing patches the model
    with progress("tracing with optimum", 1) as advance:
        _trace(model, checkpoint, traced)
        advance(1)
    del model
    weights = WeightFile(folder / WEIGHTS_NAME)
    try:
        graph = GraphWriter(weights)
        linears = None if recipe.full_precision else Int8Linears(graph, reduce_range=recipe.reduce_range)
        rewriter = Rewriter(_load(traced / MODEL_NAME), traced, checkpoint.name)
        with progress(f"writing {recipe.name} weights", checkpoint.config.layers) as advance:
            seen = -1
            for name in rewriter.write(graph, head, linears, _pair_ids(job) if head.reads_logits else ()):
                layer = _layer_of(name)
                advance(max(0, layer - seen))
                seen = max(seen, layer)
            advance(max(0, checkpoint.config.layers - 1 - seen))
        (folder / MODEL_NAME).write_bytes(graph.model(edge_prm.__version__, rewriter.opset))
        files = {WEIGHTS_NAME: weights.close(), MODEL_NAME: file_entry(folder / MODEL_NAME)}
    finally:
        weights.abort()
    shutil.rmtree(traced)
    return ExportResult(recipe, files, references, reference="torch fp32")


def _check_tokens(job: ExportJob) -> None:
    """CheckpointError where transformers' tokenizer disagrees with ours about a text."""
    own = OwnTokenizer(job.checkpoint.folder, job.manifest.input, *job.head.tokens[:1])
    for prompt, steps in (*PROBES, *((prompt, steps) for prompt, steps, _ in job.golden)):
        trajectory = Trajectory.of(prompt, steps)
        with contextlib.suppress(ContextLengthError):
            if reason := own.disagreement(trajectory, job.encoder.encode(trajectory).ids.tolist()):
                raise CheckpointError(f"checkpoint {job.checkpoint.name}: {reason}")


def _pair_ids(job: ExportJob) -> tuple[int, ...]:
    """Token ids of the bad and of the good token: the order of the head's two classes."""
    tokenizer = open_tokenizer(job.checkpoint)
    good, bad = (token_id(job.checkpoint, tokenizer, token) for token in job.head.tokens)
    return bad, good


def _trace(model: Any, checkpoint: Checkpoint, target: Path) -> None:
    """optimum's export with past keys and values; CheckpointError with its reason when it cannot."""
    from optimum.exporters.onnx import onnx_export_from_model

    model.config.use_cache = True
    try:
        with quiet(), np.errstate(all="ignore"):
            onnx_export_from_model(
                model, str(target), task="text-generation-with-past", do_validation=False, no_post_process=True
            )
    except Exception as error:  # whatever torch, transformers or optimum can raise
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: optimum cannot export model_type {checkpoint.model_type!r} ({reason})"
        ) from error


def _references(model: Any, job: ExportJob) -> list[list[float]]:
    """Rewards of the golden texts by transformers in fp32, at the positions that the encoder names: of a token pair,
    from the model's own logits."""
    import torch

    head, decoder = job.head, decoder_of(model)
    pair = _pair_ids(job) if head.reads_logits else ()
    rewards = []
    with quiet(), job.progress("scoring in torch fp32", len(job.golden)) as advance, torch.no_grad():
        for *_, text in job.golden:
            ids, read_at = torch.from_numpy(text.ids)[None], list(text.read_at)
            if pair:
                logits = model(ids, use_cache=False).logits[0, read_at][:, list(pair)]
                rewards.append(logits.softmax(-1)[:, 1].tolist())
            else:
                states = decoder(ids, use_cache=False).last_hidden_state[0, read_at]
                rewards.append(head.apply_to_all(states.numpy()).tolist())
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
