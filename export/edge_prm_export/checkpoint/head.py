"""Find a checkpoint's reward head. Its tensors determine its kind, with the architectures and labels of config.json.

The checkpoint's own code is never run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from reprlib import repr as short_repr

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError, HeadNotFoundError, InputError
from edge_prm.head import Head
from edge_prm.notices import AmbiguousHeadWarning
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.tokenizer import open_tokenizer, token_id
from edge_prm_export.checkpoint.unpickle import load_state_dict

REWARD_HEAD_NAME = "reward_head.pt"
VALUE_HEAD = "v_head.summary.weight"
BARE_VALUE_HEAD = "v_head.weight"
OUTPUT_NAMES = ("lm_head.weight", "model.embed_tokens.weight")
UNTIED_BY_DEFAULT = (
    *("arcee", "deepseek_v2", "deepseek_v3", "glm", "glm4", "gpt_neox", "granite", "llama", "ministral", "mistral"),
    *("mixtral", "mpt", "olmo", "olmo2", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    "stablelm",
)
"""Models whose config class leaves tie_word_embeddings false; it is true for the others (transformers 4.57)."""
_STEP_ARCHITECTURES = ("TokenClassification", "ProcessReward", "PRM", "Prm")
_GOOD = {"correct", "good", "positive", "pos", "true", "yes", "right", "+", "1", "valid", "accept", "label 1"}
_BAD = {"incorrect", "bad", "negative", "neg", "false", "no", "wrong", "-", "0", "invalid", "reject", "label 0"}

Array = npt.NDArray[np.float32]


def read_head(checkpoint: Checkpoint, token_pair: Sequence[str] | None = None, aggregate: str = "") -> Head:
    """Return the head of a checkpoint; HeadNotFoundError names every place that was searched.

    `token_pair`: (good, bad), two pieces of the vocabulary whose probabilities are the judgement, in place of a head.
    `aggregate`: the default aggregate of the checkpoint's convention. CheckpointError for two heads in one checkpoint,
    and for a head that judges no steps or whose classes have no known meaning.
    """
    if token_pair is not None:
        tokenizer = open_tokenizer(checkpoint)
        good = token_id(checkpoint, tokenizer, token_pair[0], "--good-token")
        bad = token_id(checkpoint, tokenizer, token_pair[1], "--bad-token")
        if good == bad:
            raise InputError(f"--good-token and --bad-token are both {token_pair[0]!r}; give two tokens")
        return Head("token_pair", (_output_rows(checkpoint, bad, good),), tuple(token_pair), aggregate)
    head = HEAD_READERS[head_place(checkpoint)](checkpoint)
    return replace(head, default_aggregate=aggregate)


def head_place(checkpoint: Checkpoint) -> str:
    """Return the name of the tensor or file that is the reward head of a checkpoint.

    Raises HeadNotFoundError for none, and CheckpointError for more than one and for a head that judges no steps.
    """
    places = head_places(checkpoint)
    if not places:
        searched = [REWARD_HEAD_NAME, *_tensors(), "score.2.weight in the safetensors"]
        raise HeadNotFoundError(checkpoint.name, searched)
    if len(places) > 1:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has more than one reward head: {' and '.join(places)}; which of them the "
            "model was trained with is not known: take the others out"
        )
    if places[0] == BARE_VALUE_HEAD:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} has a {BARE_VALUE_HEAD}, which gives every token a raw value (Q-RM's "
            f"layout) and no step a probability; edge-prm reads {VALUE_HEAD}, the layout of Skywork-o1-Open-PRM"
        )
    return places[0]


def head_places(checkpoint: Checkpoint) -> list[str]:
    """The reward heads of a checkpoint: names of tensors that only a head has, or of a file of its own."""
    files = [REWARD_HEAD_NAME] if (checkpoint.folder / REWARD_HEAD_NAME).is_file() else []
    return [*files, *(name for name in _tensors() if name in checkpoint.tensor_names)]


def _loose(checkpoint: Checkpoint) -> Head:
    state = load_state_dict(checkpoint.folder / REWARD_HEAD_NAME)
    return Head("sigmoid", (_sigmoid_layer(checkpoint, state),))


def _value(checkpoint: Checkpoint) -> Head:
    """Skywork-o1-Open-PRM's: TRL's ValueHead, whose probability is the sigmoid of its one output."""
    return Head("sigmoid", (_linear(checkpoint, VALUE_HEAD.removesuffix(".weight"), 1),))


def _two_class(checkpoint: Checkpoint) -> Head:
    last = _two_labels(checkpoint, "score.2")
    return Head("two_class", (_linear(checkpoint, "score.0", checkpoint.config.hidden), last))


def _token_class(checkpoint: Checkpoint) -> Head:
    """TRL's PRMTrainer saves a token classifier; a sequence classifier has tensors of the same names."""
    layer = _two_labels(checkpoint, "score")
    names = _architectures(checkpoint)
    if not any(part in name for name in names for part in _STEP_ARCHITECTURES):
        warnings.warn(
            f"checkpoint {checkpoint.name}: score.weight is taken for the head of TRL's PRMTrainer, which judges "
            f"steps; the architectures of config.json ({', '.join(names) or 'none'}) do not name a token classifier",
            AmbiguousHeadWarning,
            stacklevel=2,
        )
    return Head("token_class", (layer,))


HEAD_READERS: dict[str, Callable[[Checkpoint], Head]] = {
    REWARD_HEAD_NAME: _loose,
    "score.0.weight": _two_class,
    "score.weight": _token_class,
    VALUE_HEAD: _value,
}
"""The tensor or file that only a head of one kind has -> what reads it."""


def _tensors() -> list[str]:
    """Names of tensors that only a reward head has."""
    return [*(name for name in HEAD_READERS if name != REWARD_HEAD_NAME), BARE_VALUE_HEAD]


def _architectures(checkpoint: Checkpoint) -> list[str]:
    names = checkpoint.raw_config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _two_labels(checkpoint: Checkpoint, name: str) -> tuple[Array, Array]:
    """The layer of a judge of steps that gives two classes, the good one last; CheckpointError for any other."""
    shape = checkpoint.shape(f"{name}.weight")
    outputs = shape[0] if shape else 0
    names = _architectures(checkpoint)
    if outputs == 1 or any("SequenceClassification" in name for name in names):
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is an outcome reward model ({', '.join(names) or 'no architectures'}, "
            f"{name}.weight with {outputs} output{'s' * (outputs != 1)}): it was trained to rate a finished solution, "
            "and what it says after a single step means nothing; give a process reward model"
        )
    if outputs != 2:
        labels = list(_labels(checkpoint).values())
        named = f" ({', '.join(labels)})" if len(labels) == outputs else ""
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: {name}.weight has shape {list(shape)}, a head of {outputs} classes{named}; "
            "a reward is the probability of one class of two, and what these classes are worth is not known"
        )
    return _good_last(checkpoint, _linear(checkpoint, name, 2))


def _labels(checkpoint: Checkpoint) -> dict[int, str]:
    """`id2label` of config.json, where it is more than the names that transformers makes up."""
    listed = checkpoint.raw_config.get("id2label")
    if not isinstance(listed, dict):
        return {}
    labels = {int(key): str(value) for key, value in sorted(listed.items()) if str(key).isdecimal()}
    return {} if all(label == f"LABEL_{index}" for index, label in labels.items()) else labels


def _good_last(checkpoint: Checkpoint, layer: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two classes with the good one last, which is what the runtime reads: turned round where id2label says so."""
    labels = _labels(checkpoint)
    meanings = [_meaning(label) for _, label in sorted(labels.items())]
    if not labels or meanings == ["bad", "good"]:
        return layer
    if meanings == ["good", "bad"]:
        return layer[0][::-1].copy(), layer[1][::-1].copy()
    raise CheckpointError(
        f"checkpoint {checkpoint.name}: id2label of config.json is {short_repr(labels)}, and which of the two classes "
        'is the good one is not known; name them, as in {"0": "incorrect", "1": "correct"}'
    )


def _meaning(label: str) -> str:
    bare = label.strip().lower().strip("<>[]|_ ").replace("_", " ").replace("-", " ").strip() or label.strip()
    bare = bare.removesuffix(" step").removeprefix("step ").strip()
    return "good" if bare in _GOOD else "bad" if bare in _BAD else ""


def _output_rows(checkpoint: Checkpoint, *ids: int) -> tuple[Array, Array]:
    """Rows of the matrix that turns hidden states into logits: `lm_head`, or the embedding where they are tied."""
    name = _output_name(checkpoint)
    checkpoint.check_shape(name, checkpoint.config.vocabulary, checkpoint.config.hidden)
    bias_name = name.replace(".weight", ".bias")
    bias = checkpoint.tensor(bias_name) if bias_name in checkpoint.tensor_names else np.zeros(max(ids) + 1, np.float32)
    return np.concatenate([checkpoint.rows(name, id_, id_ + 1) for id_ in ids]), bias[list(ids)]


def _output_name(checkpoint: Checkpoint) -> str:
    """tie_word_embeddings decides, as in transformers: a tied model's lm_head is the embedding, whatever lies there."""
    output, embedding = OUTPUT_NAMES
    names = checkpoint.tensor_names
    tied = checkpoint.raw_config.get("tie_word_embeddings", checkpoint.model_type not in UNTIED_BY_DEFAULT)
    if not isinstance(tied, bool):
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: tie_word_embeddings of config.json is {tied!r}, no boolean"
        )
    name = embedding if tied else output
    if name in names:
        return name
    if not tied and embedding in names:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: {output} is missing, and config.json says that it is not the embedding "
            "(tie_word_embeddings is false or left out); download the missing file, or set it to true if they are tied"
        )
    raise HeadNotFoundError(checkpoint.name, [name])


def _linear(checkpoint: Checkpoint, name: str, outputs: int) -> tuple[Array, Array]:
    weight = checkpoint.tensor(f"{name}.weight", outputs, checkpoint.config.hidden)
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
