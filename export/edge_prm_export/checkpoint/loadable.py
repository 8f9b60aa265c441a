"""Folders that look like a checkpoint and are not one, and configs of another version of transformers. Knows no torch.

transformers silently loads what the config does not mean: it ignores fields that it does not know, and it takes an
adapter's folder for a model. What would be misread is refused here by its name, or translated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_prm.errors import CheckpointError

Config = Mapping[str, Any]

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_ROPE_FIELDS = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
"""model_type -> names of (theta, rotated part) in a config of transformers 4, where they are not the usual."""
_PHI3_ORIGINAL = 4096  # transformers' default for a config without the field


def check_loadable(folder: Path, name: str) -> None:
    """CheckpointError that names what a folder holds in place of a full-precision decoder in safetensors.

    A folder without a config.json, or with a damaged one, passes: whoever reads it reports that.
    """
    config = _json(folder / "config.json")
    nested = next((key for key in ("text_config", "llm_config", "language_config") if key in config), None)
    if nested is not None and "num_attention_heads" not in config:
        raise CheckpointError(
            f"checkpoint {name}: config.json of model_type {config.get('model_type')!r} holds its decoder in {nested}, "
            "as models of text and images do; only text models are read: save the language model by itself"
        )


def for_transformers_4(config: Config, name: str) -> dict[str, Any]:
    """A config with the `rope_parameters` of transformers 5 turned into the fields that transformers 4 reads.

    CheckpointError when those fields cannot express them, or when both are there and disagree.
    """
    result = dict(config)
    rope = result.pop("rope_parameters", None)
    if rope is None:
        return result
    fields = _rope_fields(rope, config, name)
    for field, value in fields.items():
        old = result.get(field)
        if old is not None and _comparable(old) != _comparable(value):
            raise _disagree(name, f"{field} {old!r}", repr(value))
        result[field] = value
    if "rope_scaling" not in fields and result.get("rope_scaling"):
        raise _disagree(name, f"rope_scaling {result['rope_scaling']!r}", "type 'default'")
    return result


def _rope_fields(rope: Any, config: Config, name: str) -> dict[str, Any]:
    """`rope_parameters` of transformers 5 as the fields of transformers 4."""
    fields: dict[str, Any] = {}
    if isinstance(rope, dict) and any(isinstance(value, dict) for value in rope.values()):
        rope = _of_all_layers(rope, config, name, fields)
    if not isinstance(rope, dict):
        raise CheckpointError(f"checkpoint {name}: rope_parameters in config.json is {rope!r}, not an object")
    rest = dict(rope)
    theta_field, part_field = _ROPE_FIELDS.get(str(config.get("model_type")), ("rope_theta", "partial_rotary_factor"))
    for key, field in (("rope_theta", theta_field), ("partial_rotary_factor", part_field)):
        if rest.get(key) is not None:
            fields[field] = rest[key]
        rest.pop(key, None)
    rope_type = rest.pop("rope_type", rest.pop("type", "default"))
    rest.pop("type", None)
    if rope_type != "default":
        fields["rope_scaling"] = {"rope_type": rope_type, **rest}
        if rope_type == "longrope" and "original_max_position_embeddings" in rest:
            fields["original_max_position_embeddings"] = rest["original_max_position_embeddings"]
    elif rest:
        raise CheckpointError(
            f"checkpoint {name}: rope_parameters of type 'default' in config.json also has {', '.join(sorted(rest))}, "
            "which no transformers 4 config can say; install transformers 5 or save the checkpoint with transformers 4"
        )
    return fields


def _disagree(name: str, old: str, new: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {name}: config.json says {old} and, in rope_parameters, {new}; "
        "which of them the weights were trained with is not known: remove the wrong one"
    )


def longest_context(config: Config, positions: int) -> int:
    """The most tokens of a text whose rotary embeddings do not depend on how long the text is, in tokens.

    longrope turns all positions by other factors once a text is longer than `original_max_position_embeddings`: the
    reward of a closed step would change with what follows, and a traced graph knows the short factors only.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) not in ("longrope", "su"):
        return positions
    original = (
        config.get("original_max_position_embeddings")
        or scaling.get("original_max_position_embeddings")
        or (_PHI3_ORIGINAL if config.get("model_type") == "phi3" else None)
    )
    return min(positions, int(original)) if original else positions


def _of_all_layers(rope: Config, config: Config, name: str, fields: dict[str, Any]) -> Any:
    """One set of rope parameters for all layers, of a set for each type of layer; Gemma3's second base goes into
    `fields`."""
    sets = list(rope.values())
    if all(value == sets[0] for value in sets):
        return sets[0]
    sliding = rope.get("sliding_attention")
    if (
        config.get("model_type") == "gemma3_text"
        and set(rope) == _LAYER_TYPES
        and isinstance(sliding, dict)
        and sliding.get("rope_type", "default") == "default"
        and set(sliding) <= {"rope_type", "rope_theta"}
    ):
        fields["rope_local_base_freq"] = sliding.get("rope_theta")
        return rope["full_attention"]
    raise CheckpointError(
        f"checkpoint {name}: rope_parameters in config.json differ by type of layer ({', '.join(sorted(rope))}), which "
        f"transformers 4 cannot say of model_type {config.get('model_type')!r}; it needs transformers 5"
    )


def _comparable(value: Any) -> Any:
    """A value of a config without the ways to write one thing: `type` for `rope_type`, 10000 for 10000.0."""
    if isinstance(value, dict):
        return {"rope_type" if key == "type" else key: _comparable(part) for key, part in value.items()}
    return float(value) if isinstance(value, (int, float)) else value


def _json(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
