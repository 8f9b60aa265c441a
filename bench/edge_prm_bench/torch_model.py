"""The oracle: a checkpoint in full precision, run by transformers the way its authors run it.

Shares no code with the runtime: the text is tokenized by transformers, steps are found by tokenizing the text up to
them (sigmoid) or at the separator token (two-class), and the head is applied in fp32. Remote code is never run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_prm import Trajectory
from edge_prm.errors import HeadNotFoundError, InputError, MissingExtraError

STEP_TOKEN = "<extra_0>"
TRL_SEPARATOR = "\n"


class TorchPRM:
    """Rewards in torch; `dtype` is bf16 or fp32, `device` cpu or cuda."""

    def __init__(self, checkpoint: Path, dtype: str, device: str = "cpu", threads: int | None = None) -> None:
        try:
            import torch
            from safetensors import safe_open
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as hf_logging
        except ImportError as error:
            raise MissingExtraError("reference", [error.name or "torch"]) from None
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, and torch sees no CUDA device here; leave --device out for the CPU")
        if threads:
            torch.set_num_threads(threads)
        self._torch: Any = torch
        hf_logging.set_verbosity_error()  # it warns of heads that it does not know
        hf_logging.disable_progress_bar()
        self._device = device
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        self._model = AutoModel.from_pretrained(checkpoint, dtype=kind, trust_remote_code=False).to(device).eval()
        self.context_length = int(self._model.config.max_position_embeddings)
        self.head, self._layers = self._read_head(checkpoint, safe_open)

    def _read_head(self, checkpoint: Path, safe_open: Any) -> tuple[str, list[tuple[Any, Any]]]:
        """The head's linears, in fp32: weight `[out, in]` and bias `[out]` each."""
        torch, kind = self._torch, head_kind(checkpoint)
        state: dict[str, Any] = {}
        if kind == "sigmoid":
            loaded = torch.load(checkpoint / "reward_head.pt", map_location="cpu", weights_only=True)
            state = {f"score.{name.rsplit('.', 1)[-1]}": value for name, value in loaded.items()}
        for file in sorted(checkpoint.glob("*.safetensors")) if kind != "sigmoid" else ():
            with safe_open(file, "pt") as tensors:
                names = [name for name in tensors.keys() if name.startswith("score.")]  # noqa: SIM118 - no mapping
                state |= {name: tensors.get_tensor(name) for name in names}
        layers = []
        for name in ["score.0", "score.2"] if kind == "two_class" else ["score"]:
            weight = state[f"{name}.weight"].float()
            bias = state.get(f"{name}.bias", torch.zeros(len(weight))).float()
            layers.append((weight.to(self._device), bias.to(self._device)))
        return kind, layers

    def encode(self, trajectory: Trajectory) -> tuple[list[int], list[int]]:
        """Token ids and read positions; InputError where the text does not keep its steps apart."""
        if self.head == "sigmoid":
            return self._encode_raw(trajectory)
        if self.head == "two_class":
            return self._encode_template(trajectory)
        ids = self._ids(trajectory.prompt)
        if self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id, *ids]
        read_at = []
        for step in trajectory.steps:
            ids += self._ids(step.text) + self._ids(TRL_SEPARATOR)
            read_at.append(len(ids) - 1)
        return ids, read_at

    def _encode_raw(self, trajectory: Trajectory) -> tuple[list[int], list[int]]:
        text = trajectory.prompt + trajectory.lead
        read_at = []
        for step in trajectory.steps:
            text += step.text + step.separator
            read_at.append(len(self._ids(text)) - 1)
        return self._ids(text), read_at

    def _encode_template(self, trajectory: Trajectory) -> tuple[list[int], list[int]]:
        answer = "".join(step.text + STEP_TOKEN for step in trajectory.steps)
        messages = [{"role": "user", "content": trajectory.prompt}, {"role": "assistant", "content": answer}]
        ids = self._ids(self._tokenizer.apply_chat_template(messages, tokenize=False))
        step_id = self._tokenizer.convert_tokens_to_ids(STEP_TOKEN)
        read_at = [index for index, id_ in enumerate(ids) if id_ == step_id]
        if len(read_at) != len(trajectory.steps):
            raise InputError(f"the text holds {STEP_TOKEN} itself, so its {len(trajectory.steps)} steps cannot be told")
        return ids, read_at

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def rewards(self, batch: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Rewards of each encoded text of a batch; shorter texts are padded on the right, behind what is read."""
        torch = self._torch
        longest = max(len(ids) for ids, _ in batch)
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch], device=self._device)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch], device=self._device)
        with torch.inference_mode():
            hidden = self._model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
            return [self._apply_head(row[read_at].float()) for row, (_, read_at) in zip(hidden, batch, strict=True)]

    def _apply_head(self, rows: Any) -> list[float]:
        for index, (weight, bias) in enumerate(self._layers):
            rows = (rows.relu() if index else rows) @ weight.T + bias
        probability = rows.sigmoid()[:, 0] if self.head == "sigmoid" else rows.softmax(-1)[:, 1]
        rewards: list[float] = probability.tolist()
        return rewards


def head_kind(checkpoint: Path) -> str:
    """sigmoid, two_class or token_class, told by the names of the tensors; HeadNotFoundError when there is no head."""
    names: set[str] = set()
    for file in checkpoint.glob("*.safetensors"):
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            names |= json.loads(stream.read(length)).keys()
    if "score.0.weight" in names:
        return "two_class"
    if "score.weight" in names:
        return "token_class"
    if (checkpoint / "reward_head.pt").is_file():
        return "sigmoid"
    raise HeadNotFoundError(str(checkpoint), ["reward_head.pt", "score.* in the safetensors"])
