"""What this package needs from a checkpoint, whatever its file format."""

from __future__ import annotations

from typing import Protocol

from edge_prm.arrays import Float32
from edge_prm_export.checkpoint.config import DecoderSpec


class TensorSource(Protocol):
    """Tensors by name, and the spec of the decoder that they belong to. `Checkpoint` is one."""

    name: str
    """What messages call the checkpoint."""

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of all tensors, those that are not the decoder's included."""

    @property
    def spec(self) -> DecoderSpec:
        """The decoder; UnsupportedArchitectureError for one of no known family."""

    def tensor(self, name: str, *shape: int) -> Float32:
        """A tensor as float32; CheckpointError when it is missing, has another shape, or holds NaN or infinity."""

    def rows(self, name: str, start: int, end: int) -> Float32:
        """Rows `start` to `end` of a matrix, float32 `[end - start, columns]`."""

    def check_shape(self, name: str, *shape: int) -> None:
        """CheckpointError when a tensor's shape is not `shape`; nothing is read."""

    def check_dtype(self, name: str) -> None:
        """CheckpointError when a tensor's dtype is none that is read as a weight; nothing is read."""
