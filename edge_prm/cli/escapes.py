"""Backslash escapes in options of the command line: in single quotes of a shell, `\\n` is two characters."""

from __future__ import annotations

from typing import Any

from edge_prm.errors import InputError

_KNOWN = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def unescape(text: str, option: str) -> str:
    r"""Return a text with \n, \r, \t and \\ replaced by their characters.

    Raises InputError, which names `option`, for any other backslash.
    """
    result, rest = "", text
    while rest:
        plain, backslash, rest = rest.partition("\\")
        result += plain
        if backslash and rest[:1] not in _KNOWN:
            raise InputError(
                f"{option} {text!r} has a backslash that is none of \\n, \\r, \\t and \\\\; write \\\\ for a backslash"
            )
        if backslash:
            result, rest = result + _KNOWN[rest[0]], rest[1:]
    return result


def unescaped(_context: object, parameter: Any, value: str | None) -> str | None:
    """Read the escapes in the text of an option: a callback of click."""
    return None if value is None else unescape(value, parameter.opts[0])
