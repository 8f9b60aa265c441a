"""The terminal view: each step with its reward as a bar and a colour."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import click

from edge_prm.score import Ranking, Score

BAR_WIDTH = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
_JOINERS = "\u200c\u200d"  # inside of words and emoji: not printable by themselves, and harmless


def bar(reward: float, width: int = BAR_WIDTH) -> str:
    """Return a bar `width` cells wide for a reward in [0, 1], in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, reward)) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip().ljust(width)


def colour(reward: float, weak_below: float) -> str:
    """Red below the threshold, green in the upper half of what is above it, yellow between."""
    if reward < weak_below:
        return "red"
    return "green" if reward >= (1 + weak_below) / 2 else "yellow"


def first_weak(rewards: Sequence[float], weak_below: float) -> int | None:
    return next((index for index, reward in enumerate(rewards) if reward < weak_below), None)


def printable(text: str) -> str:
    """Return `text` with a mark for each character that could steer the terminal or cannot be shown."""
    return "".join(c if c.isprintable() or c in _JOINERS else "\ufffd" for c in text)


def score_lines(row_id: Any, steps: Sequence[str], score: Score, aggregate: str, weak_below: float) -> list[str]:
    """Lines of the view of one scored row; the first step below `weak_below` is marked."""
    weak = first_weak(score.rewards, weak_below)
    head = f"{printable(str(row_id))}  {_plural(len(steps), 'step')}, {_plural(score.tokens, 'token')}, {aggregate} "
    lines = [
        click.style(head, bold=True) + click.style(f"{score.score:.3f}", fg=colour(score.score, weak_below), bold=True)
    ]
    for index, (text, reward) in enumerate(zip(steps, score.rewards, strict=True)):
        mark = click.style(" ◀ first weak step", fg="red", bold=True) if index == weak else ""
        lines.append(_line(f"{index + 1:4d} ", reward, weak_below, text, mark))
    return lines


def ranking_lines(row_id: Any, texts: Sequence[str], ranking: Ranking, aggregate: str, weak_below: float) -> list[str]:
    """Lines of the view of one ranked row, best candidate first; those given up early come last."""
    order = sorted(range(len(texts)), key=lambda i: (i in ranking.stopped, -ranking.scores[i]))
    head = f"{printable(str(row_id))}  {_plural(len(texts), 'candidate')}, {aggregate}"
    lines = [click.style(head, bold=True)]
    for index in order:
        mark = click.style(" ◀ best", fg="green", bold=True) if index == ranking.best else ""
        if index in ranking.stopped:
            mark = click.style(" given up", dim=True)
        lines.append(_line(f"{index:4d} ", ranking.scores[index], weak_below, texts[index], mark))
    return lines


def _line(label: str, reward: float, weak_below: float, text: str, mark: str) -> str:
    shade = colour(reward, weak_below)
    room = shutil.get_terminal_size().columns - len(label) - BAR_WIDTH - 9 - len(click.unstyle(mark))
    flat = printable(" ".join(text.split()))
    if len(flat) > max(room, 20):
        flat = flat[: max(room, 20) - 1] + "…"
    return f"{label}{click.style(f'{reward:.3f}', fg=shade)}  {click.style(bar(reward), fg=shade)} {flat}{mark}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
