"""`python -m edge_prm_bench.gpu_day -o DIR`: everything that only a GPU can tell, in ten minutes.

Writes a random checkpoint, exports it in every recipe, checks and times each bundle on the device, and torch beside
them. What DIR holds is kept: a run that was killed goes on where it ended.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

import edge_prm
from edge_prm.backends.onnx.providers import place_on
from edge_prm.backends.onnx.saturation import saturates
from edge_prm.backends.options import device_of
from edge_prm.errors import EdgePRMError, InputError, MissingExtraError, OutputError
from edge_prm.exit_codes import EXIT_BAD_INPUT, EXIT_SOME_FAILED
from edge_prm.journal import Journal, JournalHeader
from edge_prm.output import write_file
from edge_prm_bench.gpu_day.document import document
from edge_prm_bench.gpu_day.plan import Asked, checkpoint_task, export_tasks, measure_tasks
from edge_prm_bench.gpu_day.runner import Runner
from edge_prm_bench.gpu_day.scale import BUNDLES, CPU, FULL, TINY, Scale
from edge_prm_bench.gpu_day.table import markdown
from edge_prm_bench.speed.device import describe_device

JOURNAL, DOCUMENT, TABLE, LOGS = "figures.jsonl", "gpu-day.json", "gpu-day.md", "logs"
_EXPORT_SHARE = 0.67  # of the time; the rest is for measuring what is exported by then
_CORES, _MEMORY_GB = 3, 10.0  # that an export of the 1.5B should have
_RECIPES = tuple(bundle.recipe for bundle in BUNDLES)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of everything.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, or cpu.")
@click.option("--tiny", is_flag=True, help="Tiny shapes, to try the command itself.")
@click.option("--minutes", type=click.FloatRange(min=0), default=10, show_default=True, help="End after this time.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads on the CPU (default: one per core).")
@click.option("--recipe", "recipes", type=click.Choice(_RECIPES), multiple=True, help="Only these. Repeatable.")
def main(output: Path, device: str, tiny: bool, minutes: float, threads: int | None, recipes: tuple[str, ...]) -> None:
    """Measure on this device everything that only a GPU can tell.

    Exit code 1: something failed or was not begun in time; the document names it, and the same command goes on.
    """
    begun = time.monotonic()
    asked = Asked(output, TINY if tiny else FULL, _device(device), threads, recipes or _RECIPES)
    facts = _measured(asked, begun, begun + 60 * minutes)
    write_file(output / DOCUMENT, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    write_file(output / TABLE, markdown(facts))
    click.echo(markdown(facts))
    click.echo(json.dumps(facts, allow_nan=False))
    if facts["failures"]:
        sys.exit(EXIT_SOME_FAILED)


def _measured(asked: Asked, begun: float, deadline: float) -> dict[str, Any]:
    """Run what is missing, and return the document."""
    try:
        (asked.folder / LOGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{asked.folder} cannot be written: {error.strerror}; choose another folder") from None
    header = JournalHeader(
        "edge-prm-gpu-day", 1, {"scale": asked.scale.name, "edge_prm": edge_prm.__version__}, "journal of a GPU day"
    )
    with Journal(asked.folder / JOURNAL, header) as journal:
        runner = Runner(journal, asked.folder / LOGS, lambda line: _say(begun, line))
        runner.run([checkpoint_task(asked)], deadline)
        jobs = _jobs(asked.scale)
        exports = export_tasks(asked, reduce_range=bool(saturates()))
        runner.run(exports, begun + _EXPORT_SHARE * (deadline - begun), jobs)
        runner.run(measure_tasks(asked), deadline, jobs if asked.scale is TINY else 1)  # one at a time, to be timed
        return document(asked, runner.rows)


def _device(device: str) -> str:
    """The device with the number of its card; InputError where ONNX Runtime cannot run on it."""
    kind, index = device_of(device)
    if kind not in (CPU, "cuda"):
        raise InputError(f"device is {device!r}; choose cuda, cuda:1 or cpu")
    try:
        place_on(device)
    except ImportError:
        raise MissingExtraError("cpu", ["onnxruntime"]) from None
    return CPU if kind == CPU else f"cuda:{index}"


def _jobs(scale: Scale) -> int:
    """Exports that run at the same time: as many as cores and memory hold."""
    device = describe_device()
    if scale is TINY:
        return device.processor.cores
    by_memory = int((device.memory_gb or _MEMORY_GB) / _MEMORY_GB)
    return max(1, min(len(BUNDLES), device.processor.cores // _CORES, by_memory))


def _say(begun: float, line: str) -> None:
    click.echo(f"{time.monotonic() - begun:6.1f} s  {line}", err=True)


if __name__ == "__main__":
    try:
        main()
    except EdgePRMError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
