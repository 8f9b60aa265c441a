"""Values of the right type that no exporter writes are damage of a manifest."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import TYPE_CHECKING

from edge_prm.aggregate import AGGREGATES
from edge_prm.head import HEADS
from edge_prm.recipe import ENGINES

if TYPE_CHECKING:
    from edge_prm.manifest import Golden, Manifest

INPUT_FORMATS = ("raw", "template", "pieces", "tagged")
TRIMS = ("", *(f"{side}{what}" for side in ("left", "right", "both") for what in ("", "-newlines")))
"""How white space is trimmed off a message; see InputFormat."""


def check_manifest(manifest: Manifest) -> None:
    """ValueError for a value of the right type that no exporter writes."""
    architecture, form, head = manifest.architecture, manifest.input, manifest.head
    trims = (form.chat.trim_user, form.chat.trim_assistant)
    for name in manifest.files:
        if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():  # not a file of the folder
            raise ValueError(f"file name {name!r}")
    engine = ENGINES.get(manifest.recipe.engine)
    if missing := [name for name in (engine.files if engine else ()) if name not in manifest.files]:
        raise ValueError(f"files do not list {', '.join(missing)}")
    sizes = {"context_length": manifest.context_length, **vars(architecture)}
    del sizes["model_type"]
    ids = [id_ for id_ in (form.separator_id, form.bos_id) if id_ is not None]
    for name, value, right in (
        ("head", head.kind, head.kind in HEADS),
        ("default_aggregate", head.default_aggregate, head.default_aggregate in AGGREGATES),
        ("input format", form.format, form.format in INPUT_FORMATS),
        ("separator_id", form.separator_id, form.format != "template" or form.separator_id is not None),
        ("separator", form.separator, form.separator),
        ("trim", trims, {*trims} <= {*TRIMS}),
        ("refused", form.chat.refused, all(form.chat.refused)),
        ("token ids", ids, all(0 <= id_ < architecture.vocabulary for id_ in ids)),
        ("golden", manifest.golden, all(_equally_long(golden) for golden in manifest.golden)),
        *((name, size, size > 0) for name, size in sizes.items()),
    ):
        if not right:
            raise ValueError(f"{name} {reprlib.repr(value)}")


def _equally_long(golden: Golden) -> bool:
    return 0 < len(golden.steps) == len(golden.reference_rewards) == len(golden.bundle_rewards)
