"""A checkpoint's decoder after a list of exact transforms: what the writers of files read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edge_prm.arrays import AnyFloat
from edge_prm_export.decoder.layers import LayerInputs, LayerWeights, read_layer
from edge_prm_export.decoder.names import EMBEDDING, FINAL_NORM, tensor_name, tensor_shape
from edge_prm_export.decoder.source import TensorSource
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, Transform

EMBEDDING_BLOCK_ROWS = 8192


class TransformedDecoder:
    """Weights of a decoder after `transforms`, read from `source` when they are needed.

    The final norm's weight always goes into the head. ValueError for a rotation of the residual stream without
    `FoldNorms` before it: an RMSNorm with weights does not commute with a rotation.
    """

    def __init__(self, source: TensorSource, transforms: Sequence[Transform] = ()) -> None:
        self.source = source
        self.spec = source.spec
        self.shapes = source.spec.shapes
        self.transforms = tuple(transforms)
        order = [type(transform) for transform in self.transforms]
        if RotateResidual in order and FoldNorms not in order[: order.index(RotateResidual)]:
            raise ValueError("RotateResidual needs FoldNorms before it")

    @property
    def rotated(self) -> bool:
        """Whether the residual stream is rotated."""
        return any(isinstance(transform, RotateResidual) for transform in self.transforms)

    def layer(self, index: int) -> LayerWeights:
        """The transformed weights of a layer; only its norms are read now."""
        layer = read_layer(self.source, index)
        for transform in self.transforms:
            layer = transform.weights(index, layer)
        return layer

    def inputs(self, index: int, inputs: LayerInputs) -> LayerInputs:
        """The rows that enter the transformed linear layers, given those of the reference run."""
        for transform in self.transforms:
            inputs = transform.inputs(index, inputs)
        norms, found = self.layer(index).norms, inputs.derivatives
        return replace(
            inputs,
            attention=inputs.attention * norms.attention,
            feed_forward=inputs.feed_forward * norms.feed_forward,
            derivatives=found and replace(found, feed_forward=found.feed_forward * norms.feed_forward),
        )

    def embedding_blocks(self) -> Iterator[AnyFloat]:
        """The embedding in blocks of `EMBEDDING_BLOCK_ROWS` rows, each `[rows, hidden]`: all of it may take 2 GB."""
        name, (vocabulary, hidden) = tensor_name(EMBEDDING), tensor_shape(self.spec, EMBEDDING)
        self.source.check_shape(name, vocabulary, hidden)
        for start in range(0, vocabulary, EMBEDDING_BLOCK_ROWS):
            end = min(start + EMBEDDING_BLOCK_ROWS, vocabulary)
            yield self._residual(self.source.rows(name, start, end))

    def head(self, weight: AnyFloat) -> AnyFloat:
        """A weight `[out, hidden]` that reads the final norm's output, with that norm's weight folded in."""
        norm = self.source.tensor(tensor_name(FINAL_NORM), *tensor_shape(self.spec, FINAL_NORM))
        return self._residual(weight * norm)

    def _residual(self, rows: AnyFloat) -> AnyFloat:
        for transform in self.transforms:
            rows = transform.residual(rows)
        return rows
