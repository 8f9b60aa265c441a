"""config.json -> DecoderSpec: everything about a decoder that its tensors do not show.

A model family is one function: it reads what its configs say and refuses what it cannot compute. `FAMILIES` lists them
by `model_type`. A decoder of no family has shapes only, and is exported through optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from edge_prm.errors import CheckpointError, UnsupportedArchitectureError
from edge_prm_export.checkpoint.loadable import for_transformers_4, longest_context

Config = Mapping[str, Any]

HEAD_DIM_STEP = 16
"""ONNX Runtime's GroupQueryAttention takes heads whose size is a multiple of this."""
_CLASS_DEFAULTS: dict[str, Config] = {"qwen3": {"head_dim": 128}, "mistral": {"sliding_window": 4096}}
"""What transformers takes for fields that a config leaves out, where that is not what follows from other fields."""
_KNOWN_ROPE = "plain rotary embeddings and llama3 scaling"
DEFAULT_THETA = 10000.0
"""rope_theta of a config that has none: the value of the RoFormer paper, and of transformers."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a decoder, in values (`hidden`, `head_dim`, `intermediate`), tokens (`context_length`) or counts."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context_length: int

    @property
    def query_width(self) -> int:
        """Values of all query heads together, which may differ from `hidden`."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Values of all key heads together, or of all value heads."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Llama3Scaling:
    """`rope_type: llama3`: how Llama 3.1 stretches the rotary embedding of slow dimensions to a longer context.

    `original_context`: positions of the training before it was stretched, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: float


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (RoFormer, arxiv.org/abs/2104.09864) on halves of a head: `theta` is its base."""

    theta: float
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder with RMSNorm, rotary attention with shared keys, and SwiGLU.

    `family`: its model_type. `eps`: added to the mean square in every RMSNorm. `qkv_bias`: whether queries, keys and
    values have a bias. `qk_norm`: whether each head of queries and keys goes through an RMSNorm before it is rotated.
    """

    family: str
    shapes: Shapes
    rope: Rope
    eps: float
    qkv_bias: bool = False
    qk_norm: bool = False


def read_shapes(config: Config, name: str) -> Shapes:
    """The shapes of any decoder; CheckpointError for a config that is damaged or describes no model."""
    config = {**_CLASS_DEFAULTS.get(str(config.get("model_type")), {}), **config}
    with damage(name):
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        context = longest_context(config, int(config["max_position_embeddings"]))
        window = config.get("sliding_window") if _is_windowed(config) else None
        result = Shapes(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            context_length=min(context, int(window)) if window else context,  # within its window, attention is full
        )
    if any(value <= 0 for value in vars(result).values()) or result.heads % result.kv_heads or result.head_dim % 2:
        raise CheckpointError(f"checkpoint {name}: config.json describes no model that can exist ({result})")
    return result


def _is_windowed(config: Config) -> bool:
    """Whether `sliding_window` counts. Qwen has a switch for it; Mistral has none, whatever its config holds."""
    family = config.get("model_type")
    return family == "mistral" or bool(config.get("use_sliding_window", family not in ("qwen2", "qwen3")))


def read_spec(config: Config, shapes: Shapes, name: str) -> DecoderSpec:
    """The spec of a decoder of a known family; UnsupportedArchitectureError for any other."""
    found = config.get("model_type")
    family = FAMILIES.get(found) if isinstance(found, str) else None
    if family is None:
        raise UnsupportedArchitectureError(name, f"model_type {found!r}", ", ".join(FAMILIES))
    spec = family(config, shapes, name)
    numbers = [spec.rope.theta, spec.eps, *(vars(spec.rope.scaling).values() if spec.rope.scaling else ())]
    if not all(0 < value < math.inf for value in numbers):  # NaN is neither
        raise CheckpointError(f"checkpoint {name}: config.json describes no model that can exist ({spec})")
    return spec


def _plain(config: Config, shapes: Shapes, name: str) -> DecoderSpec:
    """What all families have in common: no bias, full attention, SiLU."""
    _check_classes(config, name)
    if config.get("use_sliding_window"):
        raise UnsupportedArchitectureError(name, "sliding-window attention", "full attention")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedArchitectureError(name, f"hidden_act {config['hidden_act']!r}", "silu")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedArchitectureError(name, "partial_rotary_factor", "rotary embeddings of the full head")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UnsupportedArchitectureError(name, f"{key} in {config.get('model_type')}", "linear layers without it")
    if shapes.head_dim % HEAD_DIM_STEP:
        raise UnsupportedArchitectureError(name, f"head_dim {shapes.head_dim}", f"multiples of {HEAD_DIM_STEP}")
    with damage(name):
        return DecoderSpec(str(config["model_type"]), shapes, _rope(config, name), float(config["rms_norm_eps"]))


def _qwen2(config: Config, shapes: Shapes, name: str) -> DecoderSpec:
    """Qwen2 and Qwen2.5: queries, keys and values have a bias, whatever `attention_bias` says.

    Judges of this family name code of their own (`Qwen2ForProcessRewardModel`), for a head on a plain decoder.
    """
    return replace(_plain({**config, "attention_bias": False, "auto_map": None}, shapes, name), qkv_bias=True)


def _qwen3(config: Config, shapes: Shapes, name: str) -> DecoderSpec:
    """Qwen3: an RMSNorm on each head of queries and keys, and no bias."""
    return replace(_plain(config, shapes, name), qk_norm=True)


def _llama(config: Config, shapes: Shapes, name: str) -> DecoderSpec:
    """Llama 2 and 3, with the `llama3` scaling of rotary embeddings."""
    return _plain(config, shapes, name)


def _mistral(config: Config, shapes: Shapes, name: str) -> DecoderSpec:
    """Mistral: its sliding window, where it has one, is the longest context (see `read_shapes`)."""
    return _plain(config, shapes, name)


FAMILIES: dict[str, Callable[[Config, Shapes, str], DecoderSpec]] = {
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "llama": _llama,
    "mistral": _mistral,
}
"""model_type -> its spec. Other decoders go through optimum."""


_PLAIN_CLASSES = (
    "model",
    "forcausallm",
    "fortokenclassification",
    "forsequenceclassification",
    "forprocessrewardmodel",
)
"""How the names of classes end that are a plain decoder and a head, small; they begin with the model_type."""


def _check_classes(config: Config, name: str) -> None:
    """CheckpointError for a model that is defined by code of its own, which is never run."""
    custom = config.get("auto_map")
    for auto_class, place in custom.items() if isinstance(custom, dict) else ():
        for reference in place if isinstance(place, (list, tuple)) else (place,):
            model = str(reference).rpartition(".")[2].lower()
            plain = model.removeprefix(str(config.get("model_type"))) in _PLAIN_CLASSES
            if auto_class.startswith("AutoModel") and not plain:
                raise CheckpointError(
                    f"checkpoint {name}: config.json's auto_map asks for code of its own ({reference}), which edge-prm "
                    "never runs, and what it computes is not known"
                )


def _rope(config: Config, name: str) -> Rope:
    """The rotary embedding: fields of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).

    CheckpointError where both are there and disagree.
    """
    for field in ("rope_parameters", "rope_scaling"):
        if config.get(field) and not isinstance(config[field], dict):
            raise UnsupportedArchitectureError(name, f"{field} {config[field]!r}", _KNOWN_ROPE)
    config = for_transformers_4(config, name)
    scaling = config.get("rope_scaling") or {}
    theta = float(config.get("rope_theta") or DEFAULT_THETA)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        raise UnsupportedArchitectureError(
            name, f"rope_scaling {scaling!r}", "plain rotary embeddings and llama3 scaling"
        )
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    if low == high:
        raise ValueError(f"low_freq_factor and high_freq_factor are both {low}")
    return Rope(
        theta, Llama3Scaling(float(scaling["factor"]), low, high, float(scaling["original_max_position_embeddings"]))
    )


@contextmanager
def damage(name: str) -> Iterator[None]:
    """CheckpointError for a config that is not as it should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint {name}: config.json is incomplete or damaged ({type(error).__name__}: {error})"
        ) from None
