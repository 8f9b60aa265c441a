"""Rotations are orthogonal, and int8 rows are as close as their scale allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_prm_export.decoder.rotate import Rotation, block_size, hadamard, orthogonal, rotate_blocks
from edge_prm_export.quantize.gptq import GPTQ, MAX_GROUP
from edge_prm_export.quantize.rows import REDUCED_WEIGHT_MAX, WEIGHT_MAX, quantize_rows

SIZES = (1, 16, 20, 64, 96, 128, 192, 7 * 32, 896, 1536)


@pytest.mark.parametrize("size", SIZES)
def test_a_rotation_is_orthogonal(size: int) -> None:
    matrix = Rotation(size).apply(np.eye(size))
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 2e-6


@pytest.mark.parametrize("size", [s for s in SIZES if s > 1])
def test_a_rotation_spreads_a_spike(size: int) -> None:
    spike = np.zeros(size)
    spike[3] = 1.0
    assert np.abs(Rotation(size).apply(spike)).max() < 0.8


def test_a_rotation_of_stacked_rows_is_the_rotation_of_each() -> None:
    rotation = Rotation(96)
    rows = np.random.default_rng(0).standard_normal((2, 3, 96)).astype(np.float32)
    rotated = rotation.apply(rows)
    assert rotated.shape == rows.shape
    assert np.allclose(rotated[1, 2], rotation.apply(rows[1, 2]), atol=1e-5)


def test_a_rotation_is_the_same_each_time() -> None:
    assert np.array_equal(Rotation(896).apply(np.eye(896)), Rotation(896).apply(np.eye(896)))


@pytest.mark.parametrize("size", [20, 96, 1536])
def test_rotating_both_sides_leaves_a_product_as_it_was(size: int) -> None:
    rng = np.random.default_rng(3)
    rows, weight = (rng.standard_normal((4, size)).astype(np.float32) for _ in range(2))
    rotation = Rotation(size)
    assert np.allclose(rotation.apply(rows) @ rotation.apply(weight).T, rows @ weight.T, atol=size * 1e-6)


def test_the_identity_leaves_rows_alone() -> None:
    rows = np.ones((2, 20), dtype=np.float32)
    assert Rotation(20, identity=True).apply(rows) is rows


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 64])
def test_hadamard_entries_are_alike_in_size(order: int) -> None:
    matrix = hadamard(order)
    assert np.allclose(np.abs(matrix), order**-0.5)
    assert np.allclose(matrix @ matrix.T, np.eye(order))


@pytest.mark.parametrize(("width", "block"), [(128, 64), (192, 64), (96, 32), (8960, 64), (20, 4), (7, 1)])
def test_rotating_blocks_is_multiplying_by_a_block_diagonal_matrix(width: int, block: int) -> None:
    assert block_size(width) == block
    rows = np.random.default_rng(1).standard_normal((3, width))
    assert np.allclose(rotate_blocks(rows[:, :1024], block), rows[:, :1024] @ _dense(min(width, 1024), block))


@pytest.mark.parametrize("order", [1, 3, 5, 7, 12, 14, 28])
def test_there_is_an_orthogonal_matrix_of_every_order(order: int) -> None:
    matrix = orthogonal(order)
    assert np.allclose(matrix @ matrix.T, np.eye(order))
    assert np.array_equal(matrix, orthogonal(order))


def _dense(width: int, block: int) -> np.ndarray:
    return np.kron(np.eye(width // block), hadamard(block))


ROWS = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5), min_size=1, max_size=6)


@given(ROWS, st.sampled_from([WEIGHT_MAX, REDUCED_WEIGHT_MAX]))
def test_each_value_is_within_half_a_step_of_its_own_row(values: list[list[float]], most: int) -> None:
    rows = np.array(values, dtype=np.float64)
    integers, scales = quantize_rows(rows, most)
    assert integers.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.shape == (len(rows),)
    assert np.abs(integers.astype(int)).max() <= most
    steps = scales.astype(np.float64)[:, None]
    assert (steps > 0).all()
    slack = np.abs(rows) * 1e-6 + 1e-40
    assert (np.abs(integers * steps - rows) <= steps * 0.5 + slack).all()


def test_the_largest_value_of_a_row_takes_the_whole_range() -> None:
    integers, _ = quantize_rows(np.array([[0.5, -2.0], [3.0, 0.1]]))
    assert integers[0, 1] == -127
    assert integers[1, 0] == 127


def test_reduced_range_is_seven_bits() -> None:
    integers, scales = quantize_rows(np.array([[0.5, -2.0]]), REDUCED_WEIGHT_MAX)
    assert integers.tolist() == [[16, -63]]
    assert scales[0] == pytest.approx(2 / 63)


def test_a_row_of_zeros_stays_zeros() -> None:
    integers, scales = quantize_rows(np.array([[0.0, 0.0], [1.0, -1.0]]))
    assert integers[0].tolist() == [0, 0]
    assert scales[0] == 1


def test_rows_do_not_touch_each_other() -> None:
    rows = np.random.default_rng(2).standard_normal((4, 8))
    louder = rows.copy()
    louder[0] *= 1000
    assert np.array_equal(quantize_rows(rows)[0][1:], quantize_rows(louder)[0][1:])


# compensation


def product_error(inputs: np.ndarray, weight: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> float:
    """Relative error of inputs @ weight.T when the weight is integers `[in, out]` times scales."""
    exact = inputs @ weight.T
    return float(np.linalg.norm(inputs @ (integers * scales) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("most", [WEIGHT_MAX, REDUCED_WEIGHT_MAX])
@pytest.mark.parametrize("width", [96, 2 * MAX_GROUP // 16])
def test_compensation_makes_products_of_correlated_inputs_closer(width: int, most: int) -> None:
    rng = np.random.default_rng(6)
    mixing = rng.standard_normal((width // 8, width))
    inputs = rng.standard_normal((400, width // 8)) @ mixing + 0.05 * rng.standard_normal((400, width))
    weight = rng.standard_normal((40, width)).astype(np.float32)
    plain, plain_scales = quantize_rows(weight, most)
    integers, scales = GPTQ(inputs[:300].astype(np.float32)).quantize(weight, most)
    assert integers.shape == (width, 40)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= most
    assert np.array_equal(scales, plain_scales)
    unseen = inputs[300:]
    assert product_error(unseen, weight, integers, scales) < 0.7 * product_error(unseen, weight, plain.T, scales)


@pytest.mark.parametrize("inputs", [np.zeros((5, 24)), np.tile(np.eye(24), (4, 1))])
def test_inputs_that_tell_nothing_leave_plain_rounding(inputs: np.ndarray) -> None:
    weight = np.random.default_rng(7).standard_normal((9, 24)).astype(np.float32)
    integers, scales = GPTQ(inputs.astype(np.float32)).quantize(weight)
    plain, plain_scales = quantize_rows(weight)
    assert np.array_equal(integers.T, plain)
    assert np.array_equal(scales, plain_scales)


def test_channels_are_compensated_in_groups_that_divide_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_prm_export.quantize.gptq.MAX_GROUP", 10)
    monkeypatch.setattr("edge_prm_export.quantize.gptq._STRIPE", 4)
    rng = np.random.default_rng(8)
    inputs, weight = rng.standard_normal((50, 24)).astype(np.float32), rng.standard_normal((9, 24)).astype(np.float32)
    compensation = GPTQ(inputs)
    assert compensation.group == 8
    integers, scales = compensation.quantize(weight)
    assert product_error(inputs, weight, integers, scales) < 0.02


def test_rows_are_compensated_each_for_itself() -> None:
    rng = np.random.default_rng(9)
    compensation = GPTQ(rng.standard_normal((80, 32)).astype(np.float32))
    weight = rng.standard_normal((6, 32)).astype(np.float32)
    together, _ = compensation.quantize(weight)
    assert np.array_equal(together[:, 2:3], compensation.quantize(weight[2:3])[0])
