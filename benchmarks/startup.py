"""What edge-prm adds to the start of a program: `python benchmarks/startup.py`.

Each round runs one process of each program, so that a slow moment of the machine affects all of them alike. The figures
are medians over the rounds, in seconds, less the time of `import numpy`. The last line is one JSON document.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import click

PROGRAMS = {
    "numpy": ["-c", "import numpy"],
    "import": ["-c", "import numpy, edge_prm"],
    "front_door": ["-c", "import numpy, edge_prm; edge_prm.load"],
    "help": ["-m", "edge_prm", "--help"],
}


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
def main(rounds: int) -> None:
    """Seconds that `import edge_prm` and `edge-prm --help` take more than `import numpy`."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds + 1):  # the first warms the page cache
        for name, arguments in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    click.echo(json.dumps({f"{name}_s": round(value - medians["numpy"], 4) for name, value in medians.items()}))


if __name__ == "__main__":
    main()
