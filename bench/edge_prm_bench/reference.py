"""The oracle: the authors' formula in torch, on the checkpoint's own weights.

    python -m edge_prm_bench.reference CHECKPOINT DATA.jsonl -o reference.jsonl [--traces 64] [--dtype fp32]

One line per trace: `{"id", "rewards"}`. A step's reward is sigmoid(head(h)) at the token that closes it, h being the
final-norm hidden state; the token is found by tokenizing the text up to there, so nothing is shared with edge_prm's
encoder. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edge_prm import Trajectory
from edge_prm_bench.traces import read_traces


class Oracle:
    """A checkpoint in the 1.5B's layout, run by transformers."""

    def __init__(self, checkpoint: Path, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self._torch: Any = torch
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._model = AutoModel.from_pretrained(checkpoint, dtype=kind).eval()
        state = torch.load(checkpoint / "reward_head.pt", weights_only=True)
        self._weight, self._bias = state["weight"].float(), state["bias"].float()

    def rewards(self, trajectory: Trajectory) -> list[float]:
        text = trajectory.prompt + trajectory.lead
        read_at = []
        for step in trajectory.steps:
            text += step.text + step.separator
            read_at.append(len(self._tokenizer(text)["input_ids"]) - 1)
        ids = self._torch.tensor([self._tokenizer(text)["input_ids"]])
        with self._torch.inference_mode():
            hidden = self._model(ids, use_cache=False).last_hidden_state[0, read_at].float()
            rewards: list[float] = self._torch.sigmoid(hidden @ self._weight.T + self._bias)[:, 0].tolist()
        return rewards


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--traces", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(checkpoint: Path, data: Path, output: Path, traces: int, dtype: str, threads: int) -> None:
    """Score DATA with the full-precision CHECKPOINT in torch."""
    oracle = Oracle(checkpoint, dtype, threads)
    chosen = read_traces(data, traces)
    progress = click.progressbar(chosen, label="traces", file=sys.stderr)
    with open(output, "w", encoding="utf-8", buffering=1) as out, progress as bar:
        for trace in bar:
            out.write(json.dumps({"id": trace.id, "rewards": oracle.rewards(trace.trajectory)}) + "\n")


if __name__ == "__main__":
    main()
