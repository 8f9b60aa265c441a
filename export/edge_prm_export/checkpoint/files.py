"""Read a checkpoint without torch: config, safetensors (one file or shards; fp32, fp16, bf16), one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_prm.checkpoint_files import CONFIG, check_files, checkpoint_sha256, read_json, reading
from edge_prm.errors import CheckpointError
from edge_prm.source import find_checkpoint
from edge_prm_export.checkpoint.config import DecoderSpec, read_shapes, read_spec
from edge_prm_export.checkpoint.loadable import check_loadable
from edge_prm_export.checkpoint.prefix import with_prefix
from edge_prm_export.checkpoint.safetensors_file import Entry, numpy_dtype, read_entries, read_values


class Checkpoint:
    """A folder in the layout of transformers; tensors come as float32, in the names of transformers' language model.

    Opening reads the config and the headers of the weights. Raises CheckpointError with a sentence of its own for
    folders that are something else: adapters, quantized weights, other formats, files that were not downloaded.
    """

    def __init__(self, folder: Path, name: str, revision: str | None = None) -> None:
        self.folder = folder
        self.name = name
        self.revision = revision
        check_files(folder, name)
        self.raw_config = read_json(folder / CONFIG, name)
        _check_full_precision(self.raw_config, name)
        self.model_type = str(self.raw_config.get("model_type"))
        self.config = read_shapes(self.raw_config, name)
        self._entries = with_prefix(read_entries(folder, name))

    @cached_property
    def spec(self) -> DecoderSpec:
        """The decoder of a family that the native exporter knows; UnsupportedArchitectureError for any other."""
        return read_spec(self.raw_config, self.config, self.name)

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of all tensors, in the names of a language model."""
        return frozenset(self._entries)

    def check_dtype(self, name: str) -> None:
        """CheckpointError when a tensor's dtype is none that is read as a weight; nothing is read."""
        numpy_dtype(self._entry(name), name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as its file says; CheckpointError when it is missing."""
        return self._entry(name).shape

    def tensor(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        """Return a tensor as float32; CheckpointError when its shape is not `shape` or it holds NaN or infinity."""
        if shape:
            self.check_shape(name, *shape)
        entry = self._entry(name)
        return read_values(entry, name, 0, entry.shape)

    def check_shape(self, name: str, *shape: int) -> None:
        """CheckpointError when a tensor's shape is not `shape`; nothing is read."""
        found = self._entry(name).shape
        if found != shape:
            raise CheckpointError(
                f"checkpoint {self.name}: {name} has shape {list(found)} and config.json asks for {list(shape)}"
            )

    def rows(self, name: str, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return rows `start` to `end` of a matrix as float32: for one too large to hold at once."""
        entry = self._entry(name)
        width = int(np.prod(entry.shape[1:]))
        return read_values(entry, name, start * width, (end - start, *entry.shape[1:]))

    def file(self, name: str) -> bytes:
        """The bytes of a small file of the folder; CheckpointError when it cannot be read."""
        with reading(self.folder / name):
            return (self.folder / name).read_bytes()

    @cached_property
    def _sha256(self) -> str:
        return checkpoint_sha256(self.folder)

    def sha256(self) -> str:
        """SHA-256 over all files that decide the rewards; see edge_prm.checkpoint_files. Computed once."""
        return self._sha256

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"checkpoint {self.name}: tensor {name} is missing from its safetensors files")
        return self._entries[name]


def open_checkpoint(source: str, revision: str | None = None, *, native: bool = True) -> Checkpoint:
    """Open a folder, a hub id (downloaded at `revision`), or one of the embedded `demo` and `demo-reference`.

    `native`: UnsupportedArchitectureError at once for a model that the native exporter does not know.
    """
    found = find_checkpoint(source, revision)
    check_loadable(found.folder, found.name)
    checkpoint = Checkpoint(found.folder, found.name, found.revision)
    if native:
        _ = checkpoint.spec
    return checkpoint


def _check_full_precision(config: Mapping[str, Any], name: str) -> None:
    """CheckpointError for weights that config.json says are quantized, or lie under a name of its own."""
    if found := config.get("quantization_config"):
        method = found.get("quant_method", "a method it does not name") if isinstance(found, dict) else found
        raise CheckpointError(
            f"checkpoint {name} is quantized ({method}, by its config.json); an export quantizes by itself: give the "
            "original checkpoint in fp32, fp16 or bf16"
        )
    if file := config.get("transformers_weights"):
        raise CheckpointError(
            f"checkpoint {name}: config.json names a weight file of its own ({file}), and only model.safetensors or "
            "its index are read; save the checkpoint again with save_pretrained"
        )
