"""`edge-prm bench reference`: rewards in full precision, with which bundles are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_prm.cli import options as shared
from edge_prm.cli import verbosity
from edge_prm.cli.command import ENGINE, INPUT, OUTPUT, Command, option, options
from edge_prm.exit_codes import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from edge_prm_bench.reference.torch_model import Described

_FILE = click.Path(path_type=Path)
_torch = options(
    option("--dtype", section=ENGINE, type=click.Choice(("fp32", "bf16")), default="fp32", show_default=True,
           help="Precision of the weights."),
    option("--device", section=ENGINE, type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True,
           help="Device of torch."),
    option("--batch-size", section=ENGINE, type=click.IntRange(min=1), default=1, show_default=True,
           help="Texts in one run."),
    shared.threads,
)  # fmt: skip


@click.command(
    cls=Command,
    examples=(
        "edge-prm bench reference ./ReasonFlux-PRM-1.5B traces.jsonl -o full.jsonl",
        "edge-prm bench reference ./ReasonFlux-PRM-7B traces.jsonl -o large.jsonl --dtype bf16 --limit 64",
    ),
)
@click.argument("source")
@click.argument("data", type=_FILE)
@shared.revision
@shared.yes
@option("--limit", section=INPUT, type=click.IntRange(min=1), help="Score the first traces only.")
@shared.split
@shared.fields
@_torch
@shared.conventions
@option(
    "-o", "--output", section=OUTPUT, type=_FILE, required=True,
    help="Write the rewards to this file; an interrupted run is resumed.",
)  # fmt: skip
@shared.as_json
def reference(source: str, data: Path, output: Path, as_json: bool, **given: Any) -> None:
    """Score DATA once with a full-precision checkpoint in torch.

    SOURCE is a folder, a hub id, or one of the embedded `demo` and `demo-reference`; a download is confirmed as in
    `edge-prm export`. The checkpoint is described as there, so that the reference reads the same text as the bundle.

    An interrupted run is resumed: no reward is lost, and no trace is scored twice. Exit code 1: a trace was not
    scored.
    """
    from edge_prm.printable import printable
    from edge_prm_bench.data import read_data
    from edge_prm_bench.reference.make import make_reference

    described = _described(source, given)
    separator = described.manifest.input.separator_text
    rows = read_data(
        data, limit=given["limit"], split=given["split"], fields=shared.take_fields(given),
        separators=[separator] if separator else [],
    )  # fmt: skip
    run = {name: given[name] for name in ("dtype", "device", "batch_size", "threads")}
    scored = make_reference(described, rows, output, **run, progress=verbosity.progress)
    for entry in rows.skipped:
        click.echo(f"not read: {data}, {entry.place}: {printable(entry.reason)}", err=True)
    skipped = [row for row in scored.rows if row.rewards is None]
    for row in skipped:
        click.echo(f"not scored: {row.id}: {row.skipped}", err=True)
    facts = {
        "reference": str(output), "traces": len(scored.rows), "not_scored": len(skipped),
        "not_read": len(rows.skipped), "tokens": sum(row.tokens for row in scored.rows),
    }  # fmt: skip
    click.echo(json.dumps(facts) if as_json else _sentence(facts))
    if skipped or rows.skipped:
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _sentence(facts: dict[str, Any]) -> str:
    from edge_prm.printable import plural

    missing = f", {facts['not_scored']} not scored, {facts['not_read']} not read"
    return f"{facts['reference']}: {plural(facts['traces'], 'trace')}, {plural(facts['tokens'], 'token')}" + missing * (
        facts["not_scored"] + facts["not_read"] > 0
    )


def _described(source: str, given: dict[str, Any]) -> Described:
    """A checkpoint as the exporter describes it: the benchmark itself never imports the exporter."""
    from functools import partial

    from edge_prm.cli.download import ask_before_download
    from edge_prm.extras import check_extra

    pair = shared.token_pair(given["good_token"], given["bad_token"])
    check_extra("reference")
    from edge_prm.encode import TOKENIZER_NAME
    from edge_prm.recipe import RECIPES
    from edge_prm_bench.reference.torch_model import Described
    from edge_prm_export.checkpoint.conventions import Given
    from edge_prm_export.checkpoint.files import open_checkpoint
    from edge_prm_export.checkpoint.template import head_and_format
    from edge_prm_export.checkpoint.tokenizer import open_tokenizer, token_id
    from edge_prm_export.exporter import describe
    from edge_prm_export.optimum.torch_checkpoint import OwnTokenizer, load_causal_lm, load_decoder

    ask_before_download(source, given["revision"], given["yes"])
    checkpoint = open_checkpoint(source, given["revision"], native=False)
    texts = {name: given[name] for name in ("format", "separator", "between", "after_step")}
    judge = head_and_format(checkpoint, Given(**texts, token_pair=pair))
    head = judge.head
    tokenizer = open_tokenizer(checkpoint)
    own = OwnTokenizer(checkpoint.folder, judge.format, *head.tokens[:1])
    return Described(
        manifest=describe(checkpoint, judge, RECIPES["onnx", "fp32"], {}),
        tokenizer_file=checkpoint.folder / TOKENIZER_NAME,
        layers=() if head.tokens else head.layers,
        pair=tuple(token_id(checkpoint, tokenizer, token) for token in reversed(head.tokens)),
        load=partial(load_causal_lm if head.tokens else load_decoder, checkpoint),
        disagreement=own.disagreement,
        tokenizer=own.name,
    )
