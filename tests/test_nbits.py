"""Weights in blocks: what is stored is what ONNX Runtime reads, and rounding errs no more than it must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_prm_export.onnx.nbits import has_wide_down
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.nbits import block_for, block_scales, grid_of, nearest, packed, zero_point

RNG = np.random.default_rng(11)


def stored(integers: np.ndarray, scales: np.ndarray, bits: int, block: int) -> np.ndarray:
    """The weight that integers `[out, in]` and scales `[out, blocks]` stand for, by the operator's formula."""
    wide = np.repeat(scales, block, axis=1)[:, : integers.shape[1]]
    return (integers.astype(np.float32) - zero_point(bits)) * wide


@given(
    bits=st.sampled_from([4, 8]), block=st.sampled_from([16, 32, 64, 128]), width=st.integers(1, 200),
    size=st.floats(1e-6, 1e6), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_weight_is_at_most_half_a_step_off_or_clipped_to_its_own_gain(
    bits: int, block: int, width: int, size: float, seed: int
) -> None:
    weight = (np.random.default_rng(seed).standard_normal((3, width)) * size).astype(np.float32)
    scales = block_scales(weight, bits, block)
    assert scales.shape == (3, -(-width // block))
    restored = stored(nearest(weight, scales, bits, block), scales, bits, block)
    largest = np.abs(weight).max(axis=1, keepdims=True) / (zero_point(bits) - 1)
    simple = np.clip(np.rint(weight / np.repeat(_amax(weight, block), block, 1)[:, :width]), -7, 7)
    assert np.abs(restored - weight).max() <= (0.5 if bits == 8 else 3.5) * largest.max() * 1.001
    if bits == 4:
        plain = simple * np.repeat(_amax(weight, block), block, 1)[:, :width]
        assert ((restored - weight) ** 2).sum() <= ((plain - weight) ** 2).sum() * 1.001


def _amax(weight: np.ndarray, block: int) -> np.ndarray:
    """The scale that reaches the largest weight of each block with 7."""
    filled = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block)))
    return np.maximum(np.abs(filled).reshape(len(weight), -1, block).max(axis=-1) / 7, 1e-38)


def test_a_block_of_zeros_stays_zero() -> None:
    weight = np.zeros((2, 64), dtype=np.float32)
    weight[1, 40] = 3.0
    for bits in (4, 8):
        scales = block_scales(weight, bits, 32)
        restored = stored(nearest(weight, scales, bits, 32), scales, bits, 32)
        assert not restored[0].any()
        assert restored[1, 40] == pytest.approx(3.0)


def test_scales_are_rounded_as_they_are_stored() -> None:
    weight = RNG.standard_normal((8, 64)).astype(np.float32)
    scales = block_scales(weight, 4, 32, np.float16)
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))


def test_gptq_errs_less_on_the_inputs_that_it_knows() -> None:
    inputs = (RNG.standard_normal((2000, 24)) @ RNG.standard_normal((24, 96))).astype(np.float32)
    weight = RNG.standard_normal((40, 96)).astype(np.float32)
    scales = block_scales(weight, 4, 32)
    clever = stored(GPTQ(inputs).quantize_to_grid(weight, grid_of(scales, 4, 32)).T, scales, 4, 32)
    simple = stored(nearest(weight, scales, 4, 32), scales, 4, 32)

    def error(found: np.ndarray) -> float:
        return float(((inputs @ (found - weight).T) ** 2).mean())

    assert error(clever) < 0.7 * error(simple)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("width", "block"), [(64, 32), (96, 64), (40, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_onnx_runtime_reads_what_is_stored(bits: int, width: int, block: int, dtype: Any) -> None:
    onnx = pytest.importorskip("onnx", reason='a graph needs onnx: pip install "edge-prm[export]"')
    onnxruntime = pytest.importorskip("onnxruntime", reason='this needs onnxruntime: pip install "edge-prm[cpu]"')
    weight = RNG.standard_normal((24, width)).astype(np.float32)
    scales = block_scales(weight, bits, block, dtype)
    integers = nearest(weight, scales, bits, block)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    layout = {"K": width, "N": 24, "bits": bits, "block_size": block}
    node = onnx.helper.make_node("MatMulNBits", ["rows", "weight", "scales"], ["out"], domain="com.microsoft", **layout)
    graph = onnx.helper.make_graph(
        [node],
        "test",
        [onnx.helper.make_tensor_value_info("rows", kind, ["m", width])],
        [onnx.helper.make_tensor_value_info("out", kind, ["m", 24])],
        [
            onnx.numpy_helper.from_array(packed(integers, bits, block), "weight"),
            onnx.numpy_helper.from_array(scales.astype(dtype), "scales"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.eye(width, dtype=dtype)
    found = session.run(None, {"rows": rows})[0].astype(np.float32)
    assert np.abs(found.T - stored(integers, scales, bits, block)).max() <= (1e-6 if dtype == np.float32 else 4e-3)


@pytest.mark.parametrize(
    ("width", "wanted", "block"), [(1536, 64, 64), (8960, 128, 128), (896, 256, 128), (80, 64, 16)]
)
def test_a_block_divides_the_row(width: int, wanted: int, block: int) -> None:
    assert block_for(width, wanted) == block


def test_a_third_of_the_middle_and_all_of_the_ends_have_wide_down_weights() -> None:
    wide = [index for index in range(28) if has_wide_down(index, 28)]
    assert wide == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 25, 26, 27]
