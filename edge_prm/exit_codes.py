"""The exit codes of the `edge-prm` command: the one table, which `edge-prm --help` prints."""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

MEANINGS = {
    EXIT_OK: "Everything was done.",
    EXIT_SOME_FAILED: (
        "Some rows or candidates failed, a check did not pass, an exported bundle is outside its tolerance, or the "
        "reader of a pipe closed it before the last row."
    ),
    EXIT_BAD_INPUT: "Bad input or usage, or something is missing: nothing more could be done.",
    EXIT_INTERRUPTED: "Interrupted with Ctrl-C (128 + SIGINT, as in shells).",
}
"""exit code -> what it means."""
