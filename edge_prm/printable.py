"""Text of users and data as one can print it: without control characters, cut to a width."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"  # inside of words and emoji: not printable by themselves, and harmless


def printable(text: str) -> str:
    """Return `text` with a mark for each character that could steer the terminal or cannot be shown."""
    return "".join(c if c.isprintable() or c in _JOINERS else "\ufffd" for c in text)


def one_line(text: str, width: int) -> str:
    """A text in one printable line of at most `width` characters."""
    flat = printable(" ".join(text[: 20 * width].split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 step`, `2 steps`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
