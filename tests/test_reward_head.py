"""A reward head by itself: its formula, its bits, and the table of kinds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import edge_prm
from edge_prm.aggregate import AGGREGATES
from edge_prm.head import HEADS, Head, Layers

SHAPES = {"sigmoid": [(1, 48)], "two_class": [(48, 48), (2, 48)], "token_class": [(2, 48)], "token_pair": [(2, 48)]}


def random_head(kind: str, scale: float = 0.3) -> Head:
    rng = np.random.default_rng(len(kind))
    layers: Layers = tuple(
        (
            (rng.standard_normal(shape) * scale).astype(np.float32),
            rng.standard_normal(shape[0]).astype(np.float32),
        )
        for shape in SHAPES[kind]
    )
    return Head(kind, layers, ("+", "-") if HEADS[kind].tokens else ())


def hidden_states(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 48)).astype(np.float32)


@pytest.mark.parametrize("kind", HEADS)
def test_rewards_are_the_published_formula(kind: str) -> None:
    head, hidden = random_head(kind), hidden_states(9)
    outputs = hidden.astype(np.float64)
    for index, (weight, bias) in enumerate(head.layers):
        outputs = (np.maximum(outputs, 0) if index else outputs) @ weight.T + bias
    if kind == "sigmoid":
        expected = 1 / (1 + np.exp(-outputs[:, 0]))
    else:
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        expected = powers[:, 1] / powers.sum(axis=1)
    rewards = head.apply(hidden)
    assert rewards.dtype == np.float32
    assert rewards.shape == (9,)
    assert np.abs(rewards - expected).max() < 1e-6


@pytest.mark.parametrize("kind", HEADS)
def test_the_bits_of_a_reward_do_not_depend_on_how_many_rows_are_read(kind: str) -> None:
    head, hidden = random_head(kind), hidden_states(33)
    at_once = head.apply(hidden)
    one_by_one = np.concatenate([head.apply(hidden[index : index + 1]) for index in range(33)])
    assert at_once.tobytes() == one_by_one.tobytes()
    assert head.apply(hidden[:0]).shape == (0,)


@pytest.mark.parametrize("kind", HEADS)
def test_all_rows_at_once_give_the_same_rewards_but_for_rounding(kind: str) -> None:
    head, hidden = random_head(kind), hidden_states(200)
    together = head.apply_to_all(hidden)
    assert together.dtype == np.float32
    assert np.abs(together - head.apply(hidden)).max() < 1e-6


@pytest.mark.parametrize("kind", HEADS)
def test_large_outputs_are_0_or_1_without_a_warning(kind: str) -> None:
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        rewards = random_head(kind, scale=1e4).apply(hidden_states(20))
    assert set(rewards.tolist()) <= {0.0, 1.0}


def test_a_last_layer_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a sigmoid head has 1 outputs, and its last layer has 2"):
        Head("sigmoid", random_head("token_class").layers)


def test_a_head_takes_the_default_aggregate_of_its_kind() -> None:
    defaults = {kind: random_head(kind).default_aggregate for kind in HEADS}
    assert defaults == {"sigmoid": "last", "two_class": "min", "token_class": "min", "token_pair": "min"}
    assert set(defaults.values()) <= set(AGGREGATES)
    assert Head("sigmoid", random_head("sigmoid").layers, default_aggregate="min").default_aggregate == "min"


def test_no_other_module_compares_kinds_of_heads() -> None:
    """A kind of head is a row of HEADS; what depends on it is a fact of that row."""
    root = Path(edge_prm.__file__).parents[1]
    compared = re.compile(r'kind\s*(==|!=|in)\s*\(?["\'](sigmoid|two_class|token_class|token_pair)')
    places = [
        str(path.relative_to(root))
        for package in ("edge_prm", "export", "bench")
        for path in sorted((root / package).rglob("*.py"))
        if compared.search(path.read_text(encoding="utf-8"))
    ]
    assert places == []
