"""How many rows a run of ONNX Runtime's CPU kernels has, so that the bits of a row do not depend on its neighbours.

A matrix is multiplied in blocks of rows. A lone row has a kernel of its own, with other rounding: one row on x86; on
64-bit Arm each of the one to three rows that are left after blocks of four. Attention works through the queries of a
run in blocks of 16 to 256, as the second-level cache is large, and the last block may be a lone row as well. So a run
has more rows than were asked for, which are computed and forgotten again: a token does not depend on later ones.
"""

from __future__ import annotations

import platform

QUERY_BLOCK = 16  # divides the block size of the attention operator, whatever the device
ROW_BLOCK = 4 if platform.machine().lower() in ("aarch64", "arm64") else 1
_FEWEST_READ = 2


def missing_tokens(tokens: int) -> int:
    """How many tokens more a run of `tokens` needs, at least 1 of them."""
    return max(-tokens % ROW_BLOCK, int(tokens % QUERY_BLOCK == 1))


def missing_reads(reads: int) -> int:
    """How many positions more a run must read: the last layer is computed for these rows only."""
    fewest = max(reads, _FEWEST_READ)
    return fewest - reads + -fewest % ROW_BLOCK
