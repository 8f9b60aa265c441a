"""The input format of a tiny checkpoint, by the kind of head alone."""

from __future__ import annotations

from dataclasses import replace

from edge_prm.input_format import InputFormat
from edge_prm_export.checkpoint.conventions import CONVENTIONS, Chosen, Given, choose
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.head import VALUE_HEAD
from edge_prm_export.checkpoint.template import read_format

WRITTEN = {"two_class": "qwen-math-prm", "token_class": "trl"}


def format_of(
    checkpoint: Checkpoint, kind: str, separator: str | None = None, between: str | None = None,
    after: str | None = None, answer: str = "+",
) -> InputFormat:  # fmt: skip
    """The input format of a checkpoint that is read as one with this kind of head, whatever head it has."""
    if kind == "token_pair":
        return read_format(checkpoint, choose(checkpoint, Given(None, separator, between, after, (answer, "-"))))
    name = WRITTEN.get(kind) or ("skywork-o1" if VALUE_HEAD in checkpoint.tensor_names else "reasonflux")
    row = CONVENTIONS[name]
    pieces = row.pieces if separator is None else replace(row.pieces, separator=separator)
    return read_format(checkpoint, Chosen(replace(row, pieces=pieces)))
