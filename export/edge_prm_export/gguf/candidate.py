"""One way to write a GGUF bundle, in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_prm.backends.gguf.head_file import HEAD_NAME
from edge_prm.backends.gguf.model import MODEL_NAME, GgufModel
from edge_prm.bundle import Bundle
from edge_prm.head import Head
from edge_prm.manifest import FileEntry, Manifest, Recipe
from edge_prm_export.checkpoint.config import Shapes
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.decoder.smooth import LayerScales
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues, Smooth, Transform
from edge_prm_export.gguf.head import head_rows, write_head_file
from edge_prm_export.gguf.quantizer import quantize_file
from edge_prm_export.gguf.tensors import GgufTensors
from edge_prm_export.gguf.vocabulary import spare_rows
from edge_prm_export.gguf.writer import write_gguf
from edge_prm_export.job import ExportJob, file_entry
from edge_prm_export.progress import Progress
from edge_prm_export.recipes import GGUF_TYPES

EMBEDDING_TYPE = "Q8_0"
"""Type of the embedding in a file of fewer bits; where a head fits into the file does not depend on the type."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A recipe, and the decoder after its transforms; `folder` gets the bundle's files."""

    folder: Path
    recipe: Recipe
    checkpoint: Checkpoint
    decoder: TransformedDecoder

    @classmethod
    def of(cls, job: ExportJob, recipe: Recipe, scales: Sequence[LayerScales], index: int) -> Candidate:
        """The candidate of a recipe of a job; `scales` is empty for types of 16 bits and more."""
        transforms = transforms_of(job.checkpoint.config, scales, rotated=recipe.rotated)
        decoder = TransformedDecoder(job.checkpoint, transforms)
        return cls(job.folder / f"candidate-{index}", recipe, job.checkpoint, decoder)

    def write(self, head: Head, progress: Progress) -> None:
        """Write the files; llama.cpp's quantizer makes the types that we do not write ourselves."""
        self.folder.mkdir()
        name = self.recipe.name.upper()
        direct = GGUF_TYPES[name].direct
        first = self.folder / (MODEL_NAME if direct else f"{MODEL_NAME}.f16")
        types = (name, name) if direct else ("F16", EMBEDDING_TYPE)
        label = f"writing {types[0]} weights" + (", rotated" if self.recipe.rotated else "")
        with progress(label, len(GgufTensors(self.decoder).specs())) as advance:
            for _ in write_gguf(first, self.checkpoint, self.decoder, head, *types):
                advance(1)
        if not direct:
            quantize_file(first, self.folder / MODEL_NAME, name, progress)
            first.unlink()
        if head_rows(self.decoder, head, EMBEDDING_TYPE, spare_rows(self.checkpoint)) is None:
            write_head_file(self.folder / HEAD_NAME, self.decoder, head)

    def load(self, manifest: Manifest) -> GgufModel:
        """The written bundle in llama.cpp, on the CPU. Its files are not verified: they were written just now."""
        listed = {path.name: FileEntry("", 0) for path in self.folder.iterdir()}
        return GgufModel(Bundle(self.folder, replace(manifest, files=listed)), device="cpu")

    def files(self) -> dict[str, FileEntry]:
        """name -> entry of the manifest, of each file."""
        return {path.name: file_entry(path) for path in self.folder.iterdir()}


def transforms_of(shapes: Shapes, scales: Sequence[LayerScales], *, rotated: bool) -> list[Transform]:
    """The transforms of a recipe.

    Without a rotation, norms are not folded: blocks have scales of their own, and the weights of norms are small where
    activations are large. With one, only what enters `down` can still be smoothed.
    """
    if not rotated:
        return [Smooth(shapes, scales)] if scales else []
    smooth = [Smooth(shapes, scales, only_down=True)] if scales else []
    return [RotateValues(shapes), *smooth, FoldNorms(), RotateResidual(shapes)]
