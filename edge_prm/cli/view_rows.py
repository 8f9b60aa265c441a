"""The terminal view of `edge-prm rows`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from edge_prm.printable import one_line, plural, printable
from edge_prm.records.overview import Overview, SeenCandidate
from edge_prm.records.record import BadRow, Record
from edge_prm.split import other_split

STEPS_SHOWN = 12
REASONS_SHOWN = 10


def overview_lines(summary: Overview) -> Iterator[str]:
    """Lines of the view: the first rows, then the counts."""
    for record, seen in summary.first:
        yield from _row_lines(record, seen)
        yield ""
    counts = summary.counts
    formats = ", ".join(f"{name} {count}" for name, count in summary.formats.most_common())
    yield click.style(f"{printable(summary.name)}: {plural(counts.rows, 'row')}", bold=True) + (
        f" ({formats})" if formats else ""
    )
    texts, steps = plural(counts.candidates, "text"), plural(counts.steps, "step")
    yield f"  {texts} to score, {steps}; {counts.labelled} with labels of steps"
    if counts.one_step:
        yield f"  {plural(counts.one_step, 'text')} would give one step where another --split gives more"
    for title, reasons in (("cannot be read", summary.bad), ("left out", summary.left_out)):
        if reasons:
            yield f"  {title}: {sum(reasons.values())}"
        for reason, count in reasons.most_common(REASONS_SHOWN):
            yield f"    {count:6d}  {one_line(reason, 100)}"


def _row_lines(record: Record | BadRow, seen: list[SeenCandidate]) -> Iterator[str]:
    if isinstance(record, BadRow):
        yield click.style(f"{record.place}", bold=True) + click.style(f"  {one_line(record.reason, 100)}", fg="red")
        return
    head = f"{record.place}, id {one_line(str(record.id), 40)}: {record.format}"
    yield click.style(head, bold=True) + (f", {plural(len(seen), 'candidate')}" if record.several else "")
    yield f"  prompt  {one_line(record.prompt, 100)}"
    for note in record.notes:
        yield f"  left out  {one_line(note, 100)}"
    for index, candidate in enumerate(seen):
        yield from _candidate_lines(index if record.several else None, candidate)


def _candidate_lines(index: int | None, seen: SeenCandidate) -> Iterator[str]:
    labels = seen.candidate.labels
    if index is not None:
        correct = {None: "", True: ", right", False: ", wrong"}[seen.candidate.correct]
        yield f"  candidate {index}{correct}"
    if seen.trajectory is None:
        yield click.style(f"    {one_line(seen.error, 100)}", fg="red")
        return
    if seen.trajectory.cut_at:
        yield f"    cut at {printable(seen.trajectory.cut_at)}"
    steps = seen.trajectory.steps
    for step in steps[:STEPS_SHOWN]:
        right = labels.right[step.place] if labels.right is not None else None
        mark = {None: " ", True: "+", False: "-"}[right]
        yield f"    {step.place + 1:3d} {mark} {step.kind:8s}  {one_line(step.text, 90)}"
    if len(steps) > STEPS_SHOWN:
        yield f"    ... and {len(steps) - STEPS_SHOWN} more steps"
    if labels.missing:
        yield f"    no usable labels: {one_line(labels.missing, 90)}"
    if isinstance(seen.candidate.steps, str) and (hint := other_split(seen.candidate.steps, len(steps))):
        yield f"    one step; {hint}"
