"""What a run does: tasks in order, each a process that gives figures of one subject."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_prm.manifest import MANIFEST_NAME
from edge_prm_bench.gpu_day import limits, measure
from edge_prm_bench.gpu_day.scale import ATTENTIONS, BUNDLES, CPU, Bundle, Scale
from edge_prm_bench.speed import torch_speed

CHECKPOINT, EXPORT = "checkpoint", "export"


@dataclass(frozen=True)
class Asked:
    """What a run was asked for. `device`: cpu or cuda:N; `recipes`: names of BUNDLES."""

    folder: Path
    scale: Scale
    device: str
    threads: int | None
    recipes: tuple[str, ...]

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The bundles of the run."""
        return tuple(bundle for bundle in BUNDLES if bundle.recipe in self.recipes)

    @property
    def checkpoint(self) -> Path:
        """The folder of the random checkpoint."""
        return self.folder / "checkpoint"

    def bundle(self, recipe: str) -> Path:
        """The folder of a bundle."""
        return self.folder / "bundles" / recipe

    def device_of(self, bundle: Bundle) -> str:
        """Where a bundle runs."""
        return CPU if bundle.compared else self.device


@dataclass(frozen=True)
class Task:
    """A process that prints a line for each of its figures.

    `command`: the arguments of Python, to which the figures that are missing are added. `makes`: the file that it
    writes, without which its figures do not count. `needs`: folders without which it cannot run. `prints_value`: its
    last line is the value of its only figure, because it is a command of `edge-prm`.
    """

    subject: str
    figures: tuple[str, ...]
    command: tuple[str, ...]
    makes: Path | None = None
    needs: tuple[Path, ...] = ()
    prints_value: bool = False

    def arguments(self, missing: Sequence[str]) -> list[str]:
        """The arguments of Python that give the missing figures."""
        return [*self.command] if self.prints_value else [*self.command, *missing]


def checkpoint_task(asked: Asked) -> Task:
    """Write the checkpoint."""
    command = ("-m", "edge_prm_bench.gpu_day.checkpoint", str(asked.checkpoint), asked.scale.name)
    return Task(CHECKPOINT, (CHECKPOINT,), command, asked.checkpoint / "config.json")


def export_tasks(asked: Asked, reduce_range: bool) -> list[Task]:
    """Export each bundle by the command line: the benchmark never imports the exporter, and its memory stays apart."""
    return [_export(asked, bundle, reduce_range) for bundle in asked.bundles]


def _export(asked: Asked, bundle: Bundle, reduce_range: bool) -> Task:
    target = asked.bundle(bundle.recipe)
    options = [*bundle.options, *(["--reduce-range"] if reduce_range and bundle.recipe == "int8" else [])]
    command = ("-m", "edge_prm", "export", str(asked.checkpoint), "-o", str(target), *options, "--force", "--json")
    return Task(
        f"{EXPORT} {bundle.recipe}", (EXPORT,), command, target / MANIFEST_NAME,
        (asked.checkpoint,), prints_value=True,
    )  # fmt: skip


def measure_tasks(asked: Asked) -> list[Task]:
    """Measure the device, what runs on it, torch, and then what is compared on the CPU."""
    on_device = [bundle for bundle in asked.bundles if not bundle.compared]
    compared = [bundle for bundle in asked.bundles if bundle.compared]
    ours = [_bundle(asked, bundle) for bundle in on_device]
    theirs = [_torch(asked, attention) for attention in ATTENTIONS] if has_torch() and ours else []
    return [_device(asked), *ours, *theirs, *(_bundle(asked, bundle) for bundle in compared)]


def has_torch() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def subject_of(recipe: str, device: str) -> str:
    """The name of a bundle's subject: `fp16 on cuda:0`."""
    return f"{recipe} on {device}"


def _device(asked: Asked) -> Task:
    spec = json.dumps({"device": asked.device, "threads": asked.threads})
    return Task(f"device {asked.device}", limits.FIGURES, ("-m", "edge_prm_bench.gpu_day.limits", spec))


def _bundle(asked: Asked, bundle: Bundle) -> Task:
    device, scale = asked.device_of(bundle), asked.scale
    lengths = scale.cpu_lengths if bundle.compared else scale.lengths
    spec = json.dumps(
        {"bundle": str(asked.bundle(bundle.recipe)), "device": device, "threads": asked.threads,
         "lengths": lengths, "runs": scale.runs, "memory_tokens": scale.memory_tokens}
    )  # fmt: skip
    figures = measure.figures_of(lengths, measure.COMPARED if bundle.compared else measure.FIXED)
    command = ("-m", "edge_prm_bench.gpu_day.measure", spec)
    return Task(subject_of(bundle.recipe, device), figures, command, needs=(asked.bundle(bundle.recipe),))


def _torch(asked: Asked, attention: str) -> Task:
    scale = asked.scale
    bundle = asked.bundle(next(bundle.recipe for bundle in asked.bundles if not bundle.compared))
    spec = json.dumps(
        {"checkpoint": str(asked.checkpoint), "bundle": str(bundle), "attention": attention, "device": asked.device,
         "threads": asked.threads, "lengths": scale.lengths, "runs": scale.runs, "memory_tokens": scale.memory_tokens}
    )  # fmt: skip
    figures = measure.figures_of(scale.lengths, torch_speed.FIGURES)
    command = ("-m", "edge_prm_bench.speed.torch_speed", spec)
    return Task(subject_of(f"torch {attention}", asked.device), figures, command, needs=(asked.checkpoint, bundle))
