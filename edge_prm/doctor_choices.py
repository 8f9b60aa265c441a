"""What follows from the facts of `edge_prm.doctor`: the bundle to choose, what is wrong, and what could be better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge_prm.doctor import WORKS, Diagnosis
from edge_prm.hardware import Gpu

CUDA, LLAMA_GPU, ONNX_CPU, LLAMA_CPU = "ONNX Runtime on CUDA", "llama.cpp on a GPU", "ONNX Runtime", "llama.cpp"
"""Ways to run a bundle."""


@dataclass(frozen=True)
class Choice:
    """A bundle that a device can run. `options` are those of `edge-prm export`, `device` that of the other commands.

    `memory_gb`: what must be free, in GB, for a checkpoint of 1.5 billion weights and a text of 8,000 tokens.
    `saturating`: whether it is for CPUs whose 8-bit kernels saturate, None for all.
    """

    way: str
    memory_gb: float
    options: str
    device: str
    reason: str
    saturating: bool | None = None

    @property
    def export(self) -> str:
        """The command that writes such a bundle."""
        return f"edge-prm export CHECKPOINT {self.options} -o BUNDLE"

    @property
    def check(self) -> str:
        """The command that tells whether this device can be trusted with it."""
        return f"edge-prm check BUNDLE --device {self.device}"

    def as_dict(self) -> dict[str, str]:
        """The choice as JSON values."""
        return {"way": self.way, "reason": self.reason, "export": self.export, "check": self.check}


CHOICES = (
    Choice(CUDA, 4.5, "--fp16 --device cuda", "cuda", "closest to full precision"),
    Choice(CUDA, 3.0, "--int8 --device cuda", "cuda", "half the memory of fp16"),
    Choice(CUDA, 2.0, "--int4 --device cuda", "cuda", "the least memory"),
    Choice(LLAMA_GPU, 2.5, "--gguf --int8", "gpu", "llama.cpp is built for this GPU"),
    Choice(LLAMA_GPU, 2.0, "--gguf --int4", "gpu", "llama.cpp is built for this GPU; the least memory"),
    Choice(ONNX_CPU, 2.5, "--int8 --reduce-range", "cpu", "fastest; 8-bit kernels saturate here", True),
    Choice(ONNX_CPU, 2.5, "--int8", "cpu", "fastest on a CPU", False),
    Choice(ONNX_CPU, 1.8, "--int4", "cpu", "the least memory"),
    Choice(LLAMA_CPU, 2.5, "--gguf --int8", "cpu", "ONNX Runtime, which is faster, is not installed"),
    Choice(LLAMA_CPU, 1.8, "--gguf --int4", "cpu", "the least memory"),
)  # fmt: skip
"""In order of preference: the first that fits is chosen. Memory of CPU bundles: measured peaks, see docs/benchmarks.md;
on GPUs: sizes of weights and KV cache with room for activations, not measured."""


def choose(found: Diagnosis) -> Choice | None:
    """The first of CHOICES whose engine is here and whose memory is free; None where there is none."""
    return next((choice for choice in CHOICES if _runs(choice, found) and _fits(choice, found)), None)


def faults(found: Diagnosis) -> list[str]:
    """What is wrong with the installation, each with its remedy."""
    onnx, llama = found.onnxruntime, found.llama_cpp
    said = []
    if onnx.conflict:
        said.append(onnx.conflict)
    if onnx.error:
        said.append(f"onnxruntime is installed and cannot be imported: {onnx.error}; install it again")
    if onnx.cuda not in (None, WORKS):
        said.append(f"CUDA does not work: {onnx.cuda}")
    if llama.error:
        said.append(f"llama-cpp-python is installed and cannot be imported: {llama.error}; install it again")
    return said


def notes(found: Diagnosis) -> list[str]:
    """What could be better, each with its remedy."""
    return list(_notes(found))


def _notes(found: Diagnosis) -> Iterator[str]:
    runnable = [choice for choice in CHOICES if _runs(choice, found)]
    if not runnable:
        yield 'no engine is installed; install one with: pip install "edge-prm[cpu]" (or "edge-prm[gguf]")'
    elif choose(found) is None:
        least = min(runnable, key=lambda choice: choice.memory_gb)
        yield (
            f"for a checkpoint of 1.5 billion weights {least.memory_gb:g} GB must be free, with {least.options}; close "
            "other programs, or use a smaller checkpoint"
        )
    if found.gpus and not {CUDA, LLAMA_GPU} & {choice.way for choice in runnable}:
        yield (
            f"{found.gpus[0].name} is not used by any engine here; install onnxruntime-gpu in place of onnxruntime, or "
            'build llama-cpp-python for it: CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir '
            "llama-cpp-python"
        )


def _runs(choice: Choice, found: Diagnosis) -> bool:
    """Whether the engine of a choice is here, and its kernels are the right ones."""
    onnx, llama = found.onnxruntime, found.llama_cpp
    here = {
        CUDA: onnx.cuda == WORKS,
        LLAMA_GPU: llama.version is not None and llama.gpu,
        ONNX_CPU: onnx.version is not None,
        LLAMA_CPU: llama.version is not None,
    }
    return here[choice.way] and choice.saturating in (None, bool(onnx.saturates))


def _fits(choice: Choice, found: Diagnosis) -> bool:
    """Whether as much memory is free as a choice needs; memory that nobody tells about counts as enough."""
    free = found.memory.available_gb
    if choice.way in (CUDA, LLAMA_GPU) and (card := _card(found)) is not None and card.free_gb is not None:
        free = card.free_gb
    return free is None or free >= choice.memory_gb


def _card(found: Diagnosis) -> Gpu | None:
    """The card that device `cuda` is."""
    return found.gpus[0] if found.gpus else None
