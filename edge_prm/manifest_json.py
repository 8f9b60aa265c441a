"""JSON of a manifest -> typed values; manifests of older formats -> the fields of today, in this one place."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from edge_prm.recipe import RECIPES

FORMAT_VERSION = 3
"""3: `recipe` holds engine, weights, devices and tolerances, and takes the place of `backend`; `fidelity` names its
counts and limits in full; `input.chat` groups the rules of a chat template; `convention` is named. 2: `input` has these
rules by themselves, and `fidelity` more, which a reader of format 1 does not know. In format 1, `source.sha256` was
over samples of the weights, and is no hash to compare with a later one."""
_RENAMED = {"rewards": "reward_count", "stream_tolerance": "incremental_tolerance"}
"""Fields of `fidelity` before format 3."""
_CHAT = ("trim_user", "trim_assistant", "refused", "dated")
"""Fields of `input` before format 3 that `input.chat` holds."""


@dataclass(frozen=True)
class _OldRecipe:
    """`recipe` before format 3."""

    name: str
    reduce_range: bool = False
    rotated: bool = False


def typed(declared: Any, value: Any, place: str) -> Any:
    """Return a JSON value as the type that a field declares; ValueError names the field when it is another.

    `place` is the path of the field, with a dot at its end.
    """
    arguments = get_args(declared)
    if type(None) in arguments:
        return None if value is None else typed(arguments[0], value, place)
    if is_dataclass(declared) and isinstance(value, dict):
        hints = get_type_hints(declared)
        known = {name: typed(hints.get(name, Any), part, f"{place}{name}.") for name, part in value.items()}
        return declared(**known)  # type: ignore[operator]  # a class, and TypeError for a field too many or too few
    if get_origin(declared) is tuple and isinstance(value, list):
        return tuple(typed(arguments[0], item, f"{place}{index}.") for index, item in enumerate(value))
    if get_origin(declared) is Mapping and isinstance(value, dict):
        return {name: typed(arguments[1], item, f"{place}{name}.") for name, item in value.items()}
    right = type(value) in (int, float) and math.isfinite(value) if declared is float else type(value) is declared
    if right or declared is Any:
        return value
    raise ValueError(f"{place.rstrip('.')} is {reprlib.repr(value)}")


def upgraded(data: dict[str, Any], version: int) -> dict[str, Any]:
    """A manifest's JSON values with the fields of the current format; ValueError for a recipe that never was."""
    if version >= FORMAT_VERSION:
        return data
    current = {"convention": "", **data}
    fidelity = current.get("fidelity")
    if isinstance(fidelity, dict):
        current["fidelity"] = {_RENAMED.get(name, name): value for name, value in fidelity.items()}
    form = current.get("input")
    if isinstance(form, dict):
        chat = {name: form[name] for name in _CHAT if name in form}
        current["input"] = {**{name: value for name, value in form.items() if name not in _CHAT}, "chat": chat}
    engine, old = current.pop("backend", None), typed(_OldRecipe, current.get("recipe"), "recipe.")
    if not isinstance(old, _OldRecipe) or not isinstance(engine, str) or (engine, old.name) not in RECIPES:
        raise ValueError(f"recipe {reprlib.repr(current.get('recipe'))} of backend {engine!r}")
    recipe = RECIPES[engine, old.name].with_weights(
        reduce_range=old.reduce_range, rotated=old.rotated or RECIPES[engine, old.name].rotated
    )
    current["recipe"] = _as_json(asdict(recipe))
    return current


def _as_json(value: Any) -> Any:
    """Tuples as the lists that JSON has."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
