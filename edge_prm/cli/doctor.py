"""`edge-prm doctor`: what this device can run, and which bundle to choose."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from edge_prm.cli import options as shared
from edge_prm.cli.command import Command
from edge_prm.exit_codes import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from edge_prm.doctor import Diagnosis, LlamaCpp, OnnxRuntime
    from edge_prm.hardware import Gpu


@click.command(cls=Command, examples=("edge-prm doctor", "edge-prm doctor --json"))
@shared.as_json
def doctor(as_json: bool) -> None:
    """Print what this device can run: engines, GPUs, memory, and the bundle to choose.

    Nothing is changed and nothing is sent. An engine that is not installed is a fact, and no fault.

    Exit code 1: a fault was found: wheels of ONNX Runtime in conflict, or an engine or GPU that is installed and does
    not work. Each is printed with its remedy.
    """
    from edge_prm.doctor import diagnose
    from edge_prm.doctor_choices import choose, faults, notes

    found = diagnose()
    choice, wrong, better = choose(found), faults(found), notes(found)
    if as_json:
        chosen = None if choice is None else choice.as_dict()
        click.echo(json.dumps(found.as_dict() | {"choice": chosen, "faults": wrong, "notes": better}))
    else:
        for name, value in lines(found).items():
            click.echo(f"{click.style(f'{name:>14}', bold=True)}  {value}")
        if choice is not None:
            click.echo(f"\nChoose a bundle for {choice.way} ({choice.reason}):\n  {choice.export}\n  {choice.check}")
        for kind, sentences in (("Fault", wrong), ("Note", better)):
            for sentence in sentences:
                click.echo(f"\n{kind}: {sentence}")
    if wrong:
        sys.exit(EXIT_SOME_FAILED)


def lines(found: Diagnosis) -> dict[str, str]:
    """The lines of the command: what they are about, and the text."""
    system, processor, memory = found.system, found.processor, found.memory
    instructions = f" ({', '.join(processor.instructions)})" if processor.instructions else ""
    total, free = _gb(memory.total_gb), _gb(memory.available_gb)
    saturates = {True: "saturate: use --reduce-range with --int8", False: "do not saturate", None: "not known"}
    return {
        "edge-prm": f"{system.edge_prm}, Python {system.python}, {system.platform}",
        "machine": system.machine,
        "processor": f"{processor.name}{instructions}, {processor.cores} cores, {system.usable_cores} usable",
        "8-bit kernels": saturates[found.onnxruntime.saturates],
        "memory": f"{total}, {free} available",
        "GPU": "; ".join(map(_gpu, found.gpus)) or "none that NVIDIA's driver knows",
        "ONNX Runtime": _onnxruntime(found.onnxruntime),
        "llama.cpp": _llama_cpp(found.llama_cpp),
    }


def _gb(value: float | None) -> str:
    return "an unknown amount" if value is None else f"{value:g} GB"


def _gpu(gpu: Gpu) -> str:
    held = "memory of the system" if gpu.total_gb is None else f"{gpu.total_gb:g} GB, {_gb(gpu.free_gb)} free"
    capability = f", compute capability {gpu.capability}" if gpu.capability else ""
    driver = f", driver {gpu.driver}" if gpu.driver else ""
    return f"{gpu.name} ({held}{capability}{driver})"


def _onnxruntime(onnx: OnnxRuntime) -> str:
    wheels = ", ".join(f"{name} {version}" for name, version in (onnx.wheels or {}).items())
    if onnx.version is None:
        return f"cannot be imported ({wheels})" if onnx.error else "not installed"
    cuda = "" if onnx.cuda is None else f"; CUDA {'works' if onnx.cuda == 'works' else 'does not work'}"
    return f"{onnx.version} ({wheels or 'no wheel that pip knows'}): {', '.join(onnx.providers)}{cuda}"


def _llama_cpp(llama: LlamaCpp) -> str:
    if llama.version is None:
        return "cannot be imported" if llama.error else "not installed"
    return f"llama-cpp-python {llama.version}, {'GPU and CPU' if llama.gpu else 'CPU only'}"
