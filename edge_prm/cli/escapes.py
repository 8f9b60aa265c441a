"""Backslash escapes in options of the command line: a shell's single quotes hand `\\n` over as two characters."""

from __future__ import annotations

from typing import Any

from edge_prm.errors import InputError

_KNOWN = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def unescape(text: str, option: str) -> str:
    r"""Return a text with \n, \r, \t and \\ read; InputError, which names `option`, for any other backslash."""
    made, rest = "", text
    while rest:
        plain, found, rest = rest.partition("\\")
        made += plain
        if found and rest[:1] not in _KNOWN:
            raise InputError(
                f"{option} {text!r} has a backslash that is none of \\n, \\r, \\t and \\\\; write \\\\ for a backslash"
            )
        if found:
            made, rest = made + _KNOWN[rest[0]], rest[1:]
    return made


def unescaped(_context: object, parameter: Any, value: str | None) -> str | None:
    """A callback of click for an option whose text may hold escapes."""
    return None if value is None else unescape(value, parameter.opts[0])
