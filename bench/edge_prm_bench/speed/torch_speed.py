"""A process that times a checkpoint in torch: `python -m edge_prm_bench.speed.torch_speed SPEC FIGURE...`.

transformers in bf16, without a KV cache, as it is fastest. SPEC is a JSON object: `checkpoint` (a Qwen2 model with
TRL's head), `attention` (eager or sdpa), `device` (cpu or cuda:N), `threads`, `lengths`, `runs`, `memory_tokens`, and
`bundle`, whose golden rewards are compared.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_prm.encode import TOKENIZER_NAME, Encoder
from edge_prm.errors import InputError
from edge_prm.manifest import read_manifest
from edge_prm.trajectory import Trajectory
from edge_prm_bench.speed import memory
from edge_prm_bench.speed.latency import READ_EVERY, Prefill, timing
from edge_prm_bench.speed.report_line import report_figures

FIGURES = ("memory", "rewards")
"""Figures besides the prefill of each length."""


class TorchModel:
    """The checkpoint on a device; rewards are read at positions, in fp32, and copied to main memory."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForTokenClassification

        self._spec, self._torch, self._device = spec, torch, spec["device"]
        if self._device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"torch {torch.__version__} sees no CUDA device; install its build for CUDA")
        if spec["threads"]:
            torch.set_num_threads(spec["threads"])
        self._memory = memory.reader_of(self._device)
        self._before = None if self._memory is None else self._memory()
        model = AutoModelForTokenClassification.from_pretrained(
            spec["checkpoint"], dtype=torch.bfloat16, attn_implementation=spec["attention"]
        )
        self._model = model.to(self._device).eval()
        self._head = self._model.score.float()

    def rewards(self, ids: Sequence[int], read_at: Sequence[int]) -> list[float]:
        """Probability of class 1 at each position."""
        torch = self._torch
        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=self._device)
            hidden = self._model.model(input_ids=row, use_cache=False).last_hidden_state[0]
            logits = self._head(hidden[list(read_at)].float())
            values: list[float] = logits.softmax(-1)[:, 1].tolist()
        return values

    def prefill(self, tokens: int) -> Prefill:
        """Time one text of random tokens, read every 50 tokens, as `bench` times a bundle."""
        run = self._run(tokens)
        run()
        measured = timing([run() for _ in range(self._spec["runs"])])
        return Prefill(tokens, tokens / measured.best, measured)

    def memory(self) -> dict[str, Any]:
        """GB that the model and one text added to the memory of the GPU."""
        tokens = self._spec["memory_tokens"]
        self._run(tokens)()
        return {"tokens": tokens, "device_gb": memory.added_gb(self._memory, self._before)}

    def golden(self) -> dict[str, Any]:
        """Differences from the golden rewards of a bundle, which are full precision's."""
        folder = Path(self._spec["bundle"])
        manifest = read_manifest(folder)
        encoder = Encoder(folder / TOKENIZER_NAME, manifest)
        differences: list[float] = []
        for golden in manifest.golden:
            text = encoder.encode(Trajectory.of(golden.prompt, list(golden.steps)))
            pairs = zip(self.rewards(text.ids.tolist(), text.read_at), golden.reference_rewards, strict=True)
            differences += [abs(ours - theirs) for ours, theirs in pairs]
        mean = sum(differences) / len(differences)
        return {"reward_count": len(differences), "mean_difference": mean, "max_difference": max(differences)}

    def _run(self, tokens: int) -> Callable[[], float]:
        vocabulary = int(self._model.config.vocab_size)
        ids = np.random.default_rng(0).integers(0, min(vocabulary, 150_000), tokens).tolist()
        read_at = sorted({*range(READ_EVERY - 1, tokens, READ_EVERY), tokens - 1})

        def run() -> float:
            start = time.perf_counter()
            self.rewards(ids, read_at)  # ends when the rewards are in main memory
            return time.perf_counter() - start

        return run


def main(text: str, wanted: Sequence[str]) -> None:
    """Measure the wanted figures; memory first, before longer texts take more."""
    spec = json.loads(text)
    loaded: list[TorchModel] = []

    def model() -> TorchModel:
        if not loaded:
            loaded.append(TorchModel(spec))
        return loaded[0]

    def prefill(length: int) -> Callable[[], Prefill]:
        return lambda: model().prefill(length)

    figures: dict[str, Callable[[], Any]] = {"memory": lambda: model().memory()}
    figures |= {f"prefill {length}": prefill(length) for length in spec["lengths"]}
    report_figures(figures | {"rewards": lambda: model().golden()}, wanted)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
