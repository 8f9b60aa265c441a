"""Find a checkpoint's reward head. Its kind is told by its tensors; the checkpoint's own code is never run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError, HeadNotFoundError
from edge_prm_export.checkpoint import Checkpoint
from edge_prm_export.unpickle import load_state_dict
from edge_prm_export.vocabulary import open_tokenizer, token_id

REWARD_HEAD_NAME = "reward_head.pt"
OUTPUT_NAMES = ("lm_head.weight", "model.embed_tokens.weight")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RewardHead:
    """`layers`: (weight `[out, in]`, bias `[out]`) pairs, ReLU between them, float32.

    `sigmoid` reads sigmoid of its one output, the others softmax over two outputs, class 1. A `token_pair` is two rows
    of the output matrix: those of the bad and of the good one of `tokens` (good, bad).
    """

    kind: str
    layers: tuple[tuple[Array, Array], ...]
    tokens: tuple[str, ...] = ()


def read_head(checkpoint: Checkpoint, token_pair: tuple[str, str] | None = None) -> RewardHead:
    """Return the head of a checkpoint; HeadNotFoundError names every place that was looked at.

    `token_pair`: (good, bad), two pieces of the vocabulary whose probabilities are the judgement, in place of a head.
    """
    hidden = checkpoint.config.hidden
    names = checkpoint.tensor_names
    if token_pair is not None:
        tokenizer = open_tokenizer(checkpoint)
        good = token_id(checkpoint, tokenizer, token_pair[0], "--good-token")
        bad = token_id(checkpoint, tokenizer, token_pair[1], "--bad-token")
        return RewardHead("token_pair", (_output_rows(checkpoint, bad, good),), token_pair)
    if "score.0.weight" in names:
        layers = (_linear(checkpoint, "score.0", hidden, hidden), _linear(checkpoint, "score.2", 2, hidden))
        return RewardHead("two_class", layers)
    if "score.weight" in names:
        return RewardHead("token_class", (_linear(checkpoint, "score", 2, hidden),))
    path = checkpoint.folder / REWARD_HEAD_NAME
    if path.is_file():
        return RewardHead("sigmoid", (_sigmoid_layer(checkpoint, load_state_dict(path)),))
    raise HeadNotFoundError(
        checkpoint.name, [REWARD_HEAD_NAME, "score.0.weight and score.2.weight", "score.weight in the safetensors"]
    )


def _output_rows(checkpoint: Checkpoint, *ids: int) -> tuple[Array, Array]:
    """Rows of the matrix that turns hidden states into logits: `lm_head`, or the embedding where they are tied."""
    name = next((name for name in OUTPUT_NAMES if name in checkpoint.tensor_names), None)
    if name is None:
        raise HeadNotFoundError(checkpoint.name, [*OUTPUT_NAMES])
    checkpoint.check_shape(name, checkpoint.config.vocabulary, checkpoint.config.hidden)
    bias_name = name.replace(".weight", ".bias")
    bias = checkpoint.tensor(bias_name) if bias_name in checkpoint.tensor_names else np.zeros(max(ids) + 1, np.float32)
    return np.concatenate([checkpoint.rows(name, id_, id_ + 1) for id_ in ids]), bias[list(ids)]


def _linear(checkpoint: Checkpoint, name: str, outputs: int, inputs: int) -> tuple[Array, Array]:
    weight = checkpoint.tensor(f"{name}.weight", outputs, inputs)
    if f"{name}.bias" not in checkpoint.tensor_names:
        return weight, np.zeros(outputs, dtype=np.float32)
    return weight, checkpoint.tensor(f"{name}.bias", outputs)


def _sigmoid_layer(checkpoint: Checkpoint, state: dict[str, Array]) -> tuple[Array, Array]:
    place = f"{checkpoint.name}/{REWARD_HEAD_NAME}"
    weights = [key for key in state if key == "weight" or key.endswith(".weight")]
    if len(weights) != 1 or set(state) - {weights[0], weights[0][: -len("weight")] + "bias"}:
        raise CheckpointError(f"{place} holds {sorted(state)}; the state dict of one Linear layer was expected")
    weight = state[weights[0]]
    bias = state.get(weights[0][: -len("weight")] + "bias", np.zeros(1, dtype=np.float32))
    hidden = checkpoint.config.hidden
    if weight.shape != (1, hidden) or bias.shape != (1,):
        raise CheckpointError(
            f"{place} has shapes {list(weight.shape)} and {list(bias.shape)}; a Linear({hidden}, 1) was expected"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise CheckpointError(f"{place} holds NaN or infinity")
    return weight, bias
