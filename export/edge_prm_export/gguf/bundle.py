"""The files of a GGUF bundle: where several recipes are open, each is written and the closest one is kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import numpy as np

from edge_prm.backends.gguf.model import MODEL_NAME
from edge_prm.encode import Encoded
from edge_prm.errors import UnsupportedArchitectureError
from edge_prm_export.calibration.golden import encode_texts
from edge_prm_export.calibration.more_texts import MORE
from edge_prm_export.calibration.texts import CALIBRATION
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.smooth import LayerScales, layer_scales
from edge_prm_export.gguf.candidate import Candidate
from edge_prm_export.gguf.compensate import compensate
from edge_prm_export.gguf.difference import Difference, measure
from edge_prm_export.gguf.head import shift_bias
from edge_prm_export.gguf.tensors import check_layout
from edge_prm_export.gguf.vocabulary import check_tokenizer
from edge_prm_export.job import ExportJob, ExportResult
from edge_prm_export.recipes import GGUF_TYPES, GgufType

MAX_COMPARED = 12
"""Texts that recipes are compared on, golden ones first: reading every token costs time."""
_BLOCK = 32  # values that share a scale; a row of a quantized type is a number of them


def write_model(job: ExportJob) -> ExportResult:
    """Write the GGUF (and the head's file, where it is external), and score the golden texts in full precision.

    Of several recipes the one is kept whose rewards, read at every token of our own texts, are closest to full
    precision: a rotation spreads outliers, and costs a little where there are none. UnsupportedArchitectureError for a
    decoder or tokenizer that a GGUF file of this type cannot hold.
    """
    name = job.recipes[0].name.upper()
    type_ = GGUF_TYPES[name]
    check_layout(job.checkpoint.spec, job.checkpoint.name)
    check_rows(job.checkpoint, name)
    check_tokenizer(job.checkpoint)
    reference = _run_reference(job, type_)
    candidates = [Candidate.of(job, recipe, reference.scales, index) for index, recipe in enumerate(job.recipes)]
    for candidate in candidates:
        candidate.write(job.head, job.progress)
    best, difference = _closest(job, reference, candidates)
    if not type_.direct:
        _compensate(job, best, reference.texts)
        difference = None
    if type_.bits < 16:
        difference = difference or _measure(job, reference, best)
        shift_bias(best.folder, -difference.shift)
    files = best.files()
    for file in files:
        (best.folder / file).rename(job.folder / file)
    for candidate in candidates:
        shutil.rmtree(candidate.folder)
    return ExportResult(best.recipe, files, reference.golden_rewards(job))


@dataclass(frozen=True, eq=False)
class _Reference:
    """The full-precision run after its last layer, its texts, and SmoothQuant scales for weights of few bits."""

    run: ReferenceRun
    texts: list[Encoded]
    scales: list[LayerScales]

    def golden_rewards(self, job: ExportJob) -> list[list[float]]:
        """Rewards of the golden texts, which are the first ones."""
        return [self.run.rewards(job.head, index, text.read_at) for index, (*_, text) in enumerate(job.golden)]


def _run_reference(job: ExportJob, type_: GgufType) -> _Reference:
    # not those of ONNX recipes (calibration/own.py): the figures of docs/benchmarks.md were measured with these
    own = () if type_.bits >= 16 else CALIBRATION if type_.direct else (*CALIBRATION, *MORE)
    texts = [encoded for *_, encoded in job.golden + encode_texts(job.encoder, own)]
    run = ReferenceRun(job.checkpoint, texts)
    scales = []
    with job.progress("scoring in full precision", job.checkpoint.config.layers) as advance:
        for layer in range(job.checkpoint.config.layers):
            inputs = run.run_layer(layer)
            if type_.bits < 16:
                scales.append(layer_scales(job.checkpoint, layer, inputs, type_.bits))
            advance(1)
    return _Reference(run, texts, scales)


def _closest(job: ExportJob, reference: _Reference, candidates: list[Candidate]) -> tuple[Candidate, Difference | None]:
    """The candidate that is closest to full precision; a single one is not measured."""
    if len(candidates) == 1:
        return candidates[0], None
    differences = [_measure(job, reference, candidate) for candidate in candidates]
    index = int(np.argmin([difference.mean for difference in differences]))
    return candidates[index], differences[index]


def _measure(job: ExportJob, reference: _Reference, candidate: Candidate) -> Difference:
    model = candidate.load(job.manifest)
    try:
        return measure(model, reference.run, job.head, reference.texts[:MAX_COMPARED], job.progress)
    finally:
        model.close()


def _compensate(job: ExportJob, candidate: Candidate, texts: list[Encoded]) -> None:
    run = ReferenceRun(job.checkpoint, texts)
    with job.progress("compensating rounding errors", job.checkpoint.config.layers) as advance:
        for _ in compensate(candidate.folder / MODEL_NAME, candidate.decoder, run):
            advance(1)


def check_rows(checkpoint: Checkpoint, name: str) -> None:
    """UnsupportedArchitectureError for rows that do not divide into a quantized type's blocks."""
    config = checkpoint.config
    widths = (config.hidden, config.intermediate, config.heads * config.head_dim)
    odd = next((width for width in widths if width % _BLOCK), None)
    if GGUF_TYPES[name].bits < 16 and odd is not None:
        raise UnsupportedArchitectureError(
            checkpoint.name,
            f"GGUF type {name} for rows of {odd} values",
            f"multiples of {_BLOCK} as {name}, others as F16",
        )
