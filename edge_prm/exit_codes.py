"""The exit codes of the `edge-prm` command.

| code | meaning                                                                                                |
|------|--------------------------------------------------------------------------------------------------------|
| 0    | everything was done                                                                                    |
| 1    | some rows or candidates failed, a check did not pass, or the reader of a pipe left before the last row |
| 2    | bad input or usage, or something that is missing: nothing more could be done                           |
| 130  | interrupted with Ctrl-C (128 + SIGINT, as in shells)                                                   |
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
