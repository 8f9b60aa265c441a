"""The checkpoint's own arithmetic in numpy fp32, one layer at a time.

Written from the published formulas (RMSNorm, rotary attention with shared keys, SwiGLU) and run on the weights as they
are in the checkpoint, without transforms: golden rewards come from here. It also records what enters each linear
layer, from which the quantizer learns the statistics of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from edge_prm.arrays import AnyFloat
from edge_prm.encode import Encoded
from edge_prm.head import Head
from edge_prm_export.decoder.arithmetic import product, rms, swiglu
from edge_prm_export.decoder.attention import Attention, QueryKeyValue
from edge_prm_export.decoder.layers import LayerInputs, LayerWeights, read_layer
from edge_prm_export.decoder.names import EMBEDDING, FINAL_NORM, tensor_name, tensor_shape
from edge_prm_export.decoder.source import TensorSource


class ReferenceRun:
    """Texts on their way through the model. Weights are read tensor by tensor, so that one is in memory.

    `state` `[tokens, hidden]`: the residual stream of all texts, one after the other; text i has the rows from
    `bounds[i]` to `bounds[i + 1]`. `is_read` `[tokens]`: rows of read positions.
    """

    def __init__(self, source: TensorSource, texts: Sequence[Encoded]) -> None:
        self._source = source
        self._spec = source.spec
        name = tensor_name(EMBEDDING)
        source.check_shape(name, *tensor_shape(self._spec, EMBEDDING))
        lengths = [len(text.ids) for text in texts]
        self.bounds = np.cumsum([0, *lengths])
        self.attention = Attention(self._spec, max(lengths, default=0))
        rows = [source.rows(name, id_, id_ + 1) for text in texts for id_ in text.ids.tolist()]
        self.state: AnyFloat = np.concatenate(rows)
        self.is_read = np.zeros(len(self.state), dtype=np.bool_)
        for text, start in zip(texts, self.bounds[:-1], strict=True):
            self.is_read[start + np.array(text.read_at, dtype=np.int64)] = True

    def run_layer(self, index: int) -> LayerInputs:
        """Run all texts through layer `index`, which must be the next one."""
        layer = read_layer(self._source, index)
        attention = self._rms(self.state)
        output = self._attended(attention * layer.norms.attention, layer)
        self.state = self.state + product(output, layer.o)
        feed_forward = self._rms(self.state)
        weighted = feed_forward * layer.norms.feed_forward
        gated = swiglu(product(weighted, layer.gate), product(weighted, layer.up))
        self.state = self.state + product(gated, layer.down)
        return LayerInputs(attention, output, feed_forward, gated, self.is_read)

    def rewards(self, head: Head, text: int, read_at: Sequence[int]) -> list[float]:
        """Rewards of one text at its read positions, after the last layer."""
        rows = self.state[self.bounds[text] + np.array(read_at)]
        norm = self._source.tensor(tensor_name(FINAL_NORM), *tensor_shape(self._spec, FINAL_NORM))
        return head.apply_to_all(self._rms(rows) * norm).tolist()

    def _attended(self, rows: AnyFloat, layer: LayerWeights) -> AnyFloat:
        """What attention gives within each text, `[tokens, heads * head_dim]`."""
        found = QueryKeyValue(*(product(rows, linear) for linear in (layer.q, layer.k, layer.v)))
        return self.by_text(lambda part: self.attention.forward(QueryKeyValue(*part), layer.norms), *found)

    def by_text(self, work: Callable[[list[AnyFloat]], AnyFloat], *rows: AnyFloat) -> AnyFloat:
        """`work` on the rows of each text, one text after the other, its results joined."""
        spans = pairwise(self.bounds)
        return np.concatenate([work([part[start:end] for part in rows]) for start, end in spans])

    def _rms(self, rows: AnyFloat) -> AnyFloat:
        return rms(rows, self._spec.eps)
