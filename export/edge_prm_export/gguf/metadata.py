"""Metadata of our GGUF files: the model's keys by its layout, and `edge_prm.*`.

`edge_prm.backends.gguf.checks` refuses a file with other keys.
"""

from __future__ import annotations

from typing import Any

import edge_prm
from edge_prm.backends.gguf.layout import EXTERNAL_HEAD, HEAD_IN_ROWS, Layout
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.gguf.head import HeadRows


def add_model(writer: Any, checkpoint: Checkpoint, layout: Layout, *, rotated: bool) -> None:
    """Add the keys of the model's layout, and those that name its source."""
    spec = checkpoint.spec
    values = {
        "context_length": spec.shapes.context_length,
        "rope.freq_base": spec.rope.theta,
        "attention.layer_norm_rms_epsilon": spec.eps,
    }
    writer.add_name(checkpoint.name)
    for key in layout.metadata():
        suffix = key.name.removeprefix(f"{layout.architecture}.")
        value = values[suffix] if key.size is None else getattr(spec.shapes, key.size)
        (writer.add_float32 if key.type is float else writer.add_uint32)(key.name, value)
    writer.add_string("edge_prm.version", edge_prm.__version__)
    writer.add_string("edge_prm.source.sha256", checkpoint.sha256())
    writer.add_bool("edge_prm.rotated", rotated)


def add_head(writer: Any, rows: HeadRows | None) -> None:
    """Add where the reward head is: in rows of the embedding, or (None) in a file of its own."""
    writer.add_string("edge_prm.head", HEAD_IN_ROWS if rows is not None else EXTERNAL_HEAD)
    if rows is not None:
        writer.add_uint32("edge_prm.head.row", rows.row)
        writer.add_uint32("edge_prm.head.residual_row", rows.residual)
        writer.add_float32("edge_prm.head.scale", rows.scale)
        writer.add_float32("edge_prm.head.bias", rows.bias)
