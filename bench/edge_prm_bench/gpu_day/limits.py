"""A process that measures what a device allows: `python -m edge_prm_bench.gpu_day.limits SPEC FIGURE...`.

SPEC is a JSON object: `device`, `threads`. Figures: `card`, its name and driver, null on a CPU; `limit`, 10^9
operations/s of matrix multiplication alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from edge_prm_bench.speed.gemm import Limit, fp16_gemm_gops, int8_gemm_gops
from edge_prm_bench.speed.nvml import facts_of
from edge_prm_bench.speed.report_line import report_figures

FIGURES = ("card", "fp16", "int8")


def main(text: str, wanted: Sequence[str]) -> None:
    """Measure the wanted figures: fp16 on the device, int8 on the CPU."""
    spec: dict[str, Any] = json.loads(text)
    device, threads = spec["device"], spec["threads"]
    figures = {
        "card": lambda: facts_of(device),
        "fp16": lambda: Limit("fp16", device, fp16_gemm_gops(device, threads)),
        "int8": lambda: Limit("int8", "cpu", int8_gemm_gops(threads)),
    }
    report_figures(figures, wanted)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
