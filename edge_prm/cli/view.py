"""The terminal view: each step with its reward as a bar and a colour."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click

from edge_prm.aggregate import highest
from edge_prm.printable import one_line, plural
from edge_prm.score import Ranking, Score, first_weak

BAR_WIDTH = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(reward: float, width: int = BAR_WIDTH) -> str:
    """Return a bar `width` cells wide for a reward in [0, 1], in eighths of a cell, or of # in plain encodings."""
    eighths = round(max(0.0, min(1.0, reward)) * width * 8)
    if not _shows(_EIGHTHS + "█"):
        return ("#" * round(eighths / 8)).ljust(width)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip().ljust(width)


def _shows(text: str) -> bool:
    """Whether standard output can encode a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def colour(reward: float, weak_below: float) -> str:
    """Red below the threshold, green in the upper half of what is above it, yellow between."""
    if reward < weak_below:
        return "red"
    return "green" if reward >= (1 + weak_below) / 2 else "yellow"


def score_lines(row_id: Any, score: Score, weak_below: float) -> list[str]:
    """Lines of the view of a scored row; the first step below `weak_below` is marked, and so is thinking."""
    weak = first_weak(score.rewards, weak_below)
    shade = colour(score.score / highest(score.aggregate), weak_below)
    head = (
        f"{one_line(str(row_id), 80)}  {plural(len(score.steps), 'step')}, {plural(score.tokens, 'token')}, "
        f"{score.aggregate} "
    )
    lines = [click.style(head, bold=True) + click.style(f"{score.score:.3f}", fg=shade, bold=True)]
    for index, step in enumerate(score.steps):
        mark = click.style(" ◀ first weak step", fg="red", bold=True) if index == weak else ""
        label = f"{step.place + 1:4d} {'~' if step.kind == 'thinking' else ' '}"
        lines.append(_line(label, step.reward, step.reward, weak_below, step.text, mark))
    return lines


def ranking_lines(row_id: Any, ranking: Ranking, weak_below: float) -> list[str]:
    """Lines of the view of a ranked row: the best first, then those that were pruned, then those without a score."""
    scored = [(index, score) for index, score in enumerate(ranking.candidates) if score is not None]
    scored.sort(key=lambda pair: (pair[0] in ranking.pruned, -pair[1].score))
    name = f", {scored[0][1].aggregate}" if scored else ""
    head = f"{one_line(str(row_id), 80)}  {plural(len(ranking.candidates), 'candidate')}{name}"
    lines = [click.style(head, bold=True)]
    for index, score in scored:
        mark = click.style(" ◀ best", fg="green", bold=True) if index == ranking.best else ""
        if index in ranking.pruned:
            mark = click.style(" given up", dim=True)
        text = " ".join(step.text for step in score.steps)
        lines.append(_line(f"{index:4d} ", score.score, score.score / highest(score.aggregate), weak_below, text, mark))
    for index, error in sorted(ranking.errors.items()):
        reason = one_line(str(error).removeprefix(f"candidate {index}: "), 200)
        lines.append(f"{index:4d} {click.style('no score', fg='red')}: {reason}")
    return lines


def _line(label: str, reward: float, share: float, weak_below: float, text: str, mark: str) -> str:
    """`share` is the reward as a part of the highest that there is: what bar and colour show."""
    shade = colour(share, weak_below)
    room = shutil.get_terminal_size().columns - len(label) - BAR_WIDTH - 9 - len(click.unstyle(mark))
    flat = one_line(text, max(room, 20))
    return f"{label}{click.style(f'{reward:.3f}', fg=shade)}  {click.style(bar(share), fg=shade)} {flat}{mark}"
