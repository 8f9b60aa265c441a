"""The files of a GGUF bundle: written both ways where that is open, compared, the better one refined and kept."""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_prm.backends.gguf.checks import HEAD_NAME
from edge_prm.backends.gguf.header import place_of
from edge_prm.backends.gguf.llama_cpp import engine_lines, reason
from edge_prm.backends.gguf.model import MODEL_NAME, GgufModel
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoded
from edge_prm.errors import ExportError, UnsupportedArchitectureError
from edge_prm.head import Head
from edge_prm.manifest import FileEntry, Recipe
from edge_prm_export.calibration.golden import encode_texts
from edge_prm_export.calibration.more_texts import MORE
from edge_prm_export.calibration.texts import CALIBRATION
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.smooth import layer_scales
from edge_prm_export.decoder.weights import DecoderWeights
from edge_prm_export.gguf.compensate import compensate
from edge_prm_export.gguf.metadata import check_tokenizer
from edge_prm_export.gguf.writer import head_rows, write_gguf, write_head
from edge_prm_export.job import ExportJob, ExportResult, file_entry
from edge_prm_export.progress import Progress
from edge_prm_export.recipes import GGUF_TYPES

MIXED = {"Q4_K_M": "Q6_K"}
"""Types whose `down_proj` is all of a better one, which llama.cpp gives to half of the layers: 4% more bytes."""
MOST_SCORED = 12
"""Texts that recipes are compared on, golden ones first: reading every token costs time."""
_BLOCK = 32  # values that share a scale; a row of a quantized type is a number of them


def write_model(job: ExportJob) -> ExportResult:
    """Write the GGUF (and the head, where it stands beside it), and score the golden texts in full precision.

    Of several recipes that is kept whose rewards, read at every token of our own texts, are closest to full precision:
    a rotation spreads outliers, and costs a little where there are none.
    """
    folder, recipes, checkpoint, head, progress = job.folder, job.recipes, job.checkpoint, job.head, job.progress
    type_ = GGUF_TYPES[recipes[0].name.upper()]
    check_rows(checkpoint, recipes[0].name.upper())
    check_tokenizer(checkpoint)
    own = () if type_.bits >= 16 else CALIBRATION if type_.direct else (*CALIBRATION, *MORE)
    texts = [encoded for *_, encoded in job.golden + encode_texts(job.encoder, own)]
    run = ReferenceRun(checkpoint, [text.ids for text in texts])
    scales = []
    with progress("scoring in full precision", checkpoint.config.layers) as advance:
        for layer in range(checkpoint.config.layers):
            seen = run.run_layer(layer)
            if type_.bits < 16:
                scales.append(layer_scales(checkpoint, layer, seen, type_.bits))
            advance(1)

    def compare(candidate: _Candidate) -> tuple[float, float]:
        listed = {path.name: FileEntry("", 0) for path in candidate.folder.iterdir()}  # not verified: just written
        model = GgufModel(Bundle(candidate.folder, replace(job.manifest, files=listed)), device="cpu")
        try:
            return _difference(model, run, head, texts[:MOST_SCORED], progress)
        finally:
            model.close()

    candidates = []
    for index, recipe in enumerate(recipes):
        weights = DecoderWeights(checkpoint, rotated=recipe.rotated, folded=recipe.rotated, scales=scales)
        candidates.append(_Candidate(folder / f"candidate-{index}", recipe, weights))
        candidates[-1].write(head, progress)
    differences = [compare(candidate) for candidate in candidates] if len(candidates) > 1 else [(0.0, 0.0)]
    best = candidates[int(np.argmin([error for error, _ in differences]))]
    if not type_.direct:
        again = ReferenceRun(checkpoint, [text.ids for text in texts])
        with progress("compensating rounding errors", checkpoint.config.layers) as advance:
            for _ in compensate(best.folder / MODEL_NAME, best.weights, again):
                advance(1)
    if type_.bits < 16:
        known = type_.direct and len(candidates) > 1
        _, shift = differences[candidates.index(best)] if known else compare(best)
        shift_bias(best.folder, -shift)
    files = best.files()
    for name in files:
        (best.folder / name).rename(folder / name)
    for candidate in candidates:
        shutil.rmtree(candidate.folder)
    rewards = [run.rewards(head, index, text.read_at) for index, (*_, text) in enumerate(job.golden)]
    return ExportResult(best.recipe, files, rewards)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One way to write a bundle, in a folder of its own."""

    folder: Path
    recipe: Recipe
    weights: DecoderWeights

    def write(self, head: Head, progress: Progress) -> None:
        self.folder.mkdir()
        name = self.recipe.name.upper()
        direct = GGUF_TYPES[name].direct
        first = self.folder / (MODEL_NAME if direct else f"{MODEL_NAME}.f16")
        kind = name if direct else "F16"
        label = f"writing {kind} weights" + ", rotated" * self.recipe.rotated
        with progress(label, 2 + 12 * self.weights.config.layers) as advance:
            for _ in write_gguf(first, self.weights, head, kind, kind if direct else "Q8_0"):
                advance(1)
        if not direct:
            quantize(first, self.folder / MODEL_NAME, name, progress)
            first.unlink()
        if head_rows(self.weights, head, "Q8_0") is None:
            write_head(self.folder / HEAD_NAME, self.weights, head)

    def files(self) -> dict[str, FileEntry]:
        return {path.name: file_entry(path) for path in self.folder.iterdir()}


def quantize(source: Path, target: Path, name: str, progress: Progress) -> None:
    """Let llama.cpp write `source` again in one of its own types; the embedding stays as it is."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.token_embedding_type = options.output_tensor_type = llama_cpp.GGML_TYPE_Q8_0
    options.allow_requantize = True  # for the embedding, which has its type already
    if name in MIXED:
        overrides = (llama_cpp.llama_model_tensor_override * 2)()  # the last one is empty: the end
        overrides[0].pattern, overrides[0].type = b"ffn_down", getattr(llama_cpp, f"GGML_TYPE_{MIXED[name]}")
        options.tt_overrides = overrides
    with progress(f"quantizing to {name}", 1) as advance, engine_lines() as lines:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), options)
        advance(1)
    if failed:
        raise ExportError(f"llama.cpp cannot quantize to {name}: {reason(lines)}; choose another --gguf-type")


def _difference(
    model: GgufModel, run: ReferenceRun, head: Head, texts: list[Encoded], progress: Progress
) -> tuple[float, float]:
    """Over every token: how far logits lie from full precision on average, and how far rewards do without that shift.

    Quantization shifts a head's output a little, the same way in all texts; a bias can take that back.
    """
    found, expected = [], []
    with progress("comparing with full precision", len(texts)) as advance:
        for index, text in enumerate(texts):
            everywhere = range(len(text.ids))
            sequence = model.start()
            found.append(sequence.extend(text.ids, everywhere).astype(np.float64))
            expected.append(np.array(run.rewards(head, index, everywhere), dtype=np.float64))
            sequence.close()
            advance(1)
    logits, exact = _logits(np.concatenate(found)), _logits(np.concatenate(expected))
    shift = float((logits - exact).mean())
    return float(np.abs(1 / (1 + np.exp(shift - logits)) - 1 / (1 + np.exp(-exact))).mean()), shift


def _logits(rewards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rewards that are rounded to 0 or 1 count as almost so."""
    rewards = rewards.clip(1e-4, 1 - 1e-4)
    return np.log(rewards / (1 - rewards))


def shift_bias(folder: Path, shift: float) -> None:
    """Move the output of the head in a bundle's folder: in the file's metadata, or in the layers beside it."""
    if (folder / HEAD_NAME).exists():
        with np.load(folder / HEAD_NAME) as stored:
            arrays = dict(stored)
        last = f"bias.{len(arrays) // 2 - 1}"
        arrays[last][-1] += shift  # the one output, or class 1
        np.savez(folder / HEAD_NAME, **arrays)
        return
    place = place_of(folder / MODEL_NAME, "edge_prm.head.bias")
    with open(folder / MODEL_NAME, "r+b") as file:
        file.seek(place)
        (bias,) = struct.unpack("<f", file.read(4))
        file.seek(place)
        file.write(struct.pack("<f", bias + shift))


def check_rows(checkpoint: Checkpoint, name: str) -> None:
    """Refuse a model whose rows do not divide into a quantized type's blocks."""
    config = checkpoint.config
    widths = (config.hidden, config.intermediate, config.heads * config.head_dim)
    if GGUF_TYPES[name].bits < 16 and any(width % _BLOCK for width in widths):
        odd = next(width for width in widths if width % _BLOCK)
        raise UnsupportedArchitectureError(
            checkpoint.name,
            f"GGUF type {name} for rows of {odd} values",
            f"multiples of {_BLOCK} as {name}, others as F16",
        )
