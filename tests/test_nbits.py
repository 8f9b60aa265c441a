"""Weights in blocks: what is stored is what ONNX Runtime reads, and rounding errs no more than it must."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_checkpoint
from trajectories import PROMPT, STEPS

from edge_prm.manifest import read_manifest
from edge_prm.recipe import RECIPES, Recipe
from edge_prm_export.decoder.arithmetic import swiglu
from edge_prm_export.decoder.layers import LayerInputs, ResidualDerivatives
from edge_prm_export.onnx.nbits import COMPENSATED, INT8_ACTIVATIONS, Effect, NBitsChoice, NBitsLinears, wide_channels
from edge_prm_export.onnx.recipes import LINEARS, four_bits
from edge_prm_export.onnx.writer import GraphWriter
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.nbits import Blocks, Known, Scales, compensated, scales_of
from edge_prm_export.quantize.rows import of_unit_size

RNG = np.random.default_rng(11)


def stored(integers: np.ndarray, scales: Scales) -> np.ndarray:
    """The weight that integers `[out, in]` and scales `[out, blocks]` stand for, by the operator's formula."""

    def wide(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, scales.blocks.block, axis=1)[:, : integers.shape[1]]

    return (integers.astype(np.float32) - wide(scales.zero_points)) * wide(scales.scales)


def rounded(weight: np.ndarray, scales: Scales) -> np.ndarray:
    """The stored weight when each value is rounded by itself."""
    return stored(scales.nearest(weight), scales)


@given(
    bits=st.sampled_from([4, 8]), block=st.sampled_from([16, 32, 64, 128]), width=st.integers(1, 200),
    size=st.floats(1e-6, 1e6), shift=st.floats(-3, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_weight_errs_no_more_than_over_the_plain_range_of_its_block(
    bits: int, block: int, width: int, size: float, shift: float, seed: int
) -> None:
    weight = ((np.random.default_rng(seed).standard_normal((3, width)) + shift) * size).astype(np.float32)
    scales = scales_of(weight, Blocks(bits, block))
    assert scales.scales.shape == scales.zero_points.shape == (3, -(-width // block))
    error = rounded(weight, scales) - weight
    plain = _rounded_over_its_range(weight, bits, block) - weight
    assert (error**2).sum() <= (plain**2).sum() * 1.001


def _rounded_over_its_range(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Values spread evenly over each block: 16 from its smallest weight to its largest, or 255 around zero."""
    found = []
    for row in weight:
        for start in range(0, len(row), block):
            part = row[start : start + block]
            low, high = min(part.min(), 0), max(part.max(), 0)
            if bits == 8:
                high = max(high, -low)
                low = -high
            largest = 15 if bits == 4 else 254
            step = max((high - low) / largest, 1e-38)
            zero = np.rint(-low / step)
            found.append((np.clip(np.rint(part / step) + zero, 0, largest) - zero) * step)
    return np.concatenate(found).reshape(weight.shape)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_of_zeros_stays_zero(bits: int) -> None:
    weight = np.zeros((2, 64), dtype=np.float32)
    weight[1, 40] = 3.0
    restored = rounded(weight, scales_of(weight, Blocks(bits, 32)))
    assert not restored[0].any()
    assert restored[1, 40] == pytest.approx(3.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_rounded_as_they_are_stored(bits: int) -> None:
    weight = RNG.standard_normal((8, 64)).astype(np.float32)
    scales = scales_of(weight, Blocks(bits, 32), np.float16).scales
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))


def test_a_channel_that_is_large_errs_less_when_it_counts_more() -> None:
    weight = RNG.standard_normal((200, 32)).astype(np.float32)
    importance = np.where(np.arange(32) == 7, 100, 1)

    def error(counts: np.ndarray | None) -> float:
        scales, integers = compensated(
            weight, GPTQ(np.eye(32, dtype=np.float32)), Blocks(4, 32), Known(importance=counts)
        )
        return float(((stored(integers, scales) - weight)[:, 7] ** 2).mean())

    assert error(importance) < 0.5 * error(None)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [96, 40, 24])  # whole blocks, a last one that is not full, less than one
def test_gptq_errs_less_on_the_inputs_that_it_knows(bits: int, width: int) -> None:
    inputs = (RNG.standard_normal((2000, 12)) @ RNG.standard_normal((12, width))).astype(np.float32)
    weight = RNG.standard_normal((40, width)).astype(np.float32)
    blocks = Blocks(bits, 32)
    scales, integers = compensated(weight, GPTQ(inputs, align=32), blocks, Known())

    def error(found: np.ndarray) -> float:
        return float(((inputs @ (found - weight).T) ** 2).mean())

    assert integers.max() <= blocks.largest
    assert error(stored(integers, scales)) < 0.7 * error(rounded(weight, scales_of(weight, blocks)))


def test_groups_begin_with_a_block_and_a_last_one_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_prm_export.quantize.gptq.MAX_GROUP", 96)
    inputs = RNG.standard_normal((500, 320)).astype(np.float32)  # 64 divides it in blocks of 32, and so does 32 * 10
    gptq = GPTQ(inputs, align=32)
    assert gptq.group == 64
    assert GPTQ(inputs[:, :224], align=32).group == 96  # the only divisor would be 32: three groups, the last of 32
    weight = RNG.standard_normal((30, 320)).astype(np.float32)
    scales, integers = compensated(weight, gptq, Blocks(4, 32), Known())
    assert np.abs(stored(integers, scales) - weight).max() < 1


def test_rows_that_count_more_err_less() -> None:
    inputs = RNG.standard_normal((64, 64)).astype(np.float32)
    weight = RNG.standard_normal((50, 64)).astype(np.float32)
    counts = np.where(np.arange(64) < 8, 50, 1)

    def error(gptq: GPTQ) -> float:
        scales, integers = compensated(weight, gptq, Blocks(4, 32), Known())
        return float(((inputs[:8] @ (stored(integers, scales) - weight).T) ** 2).mean())

    assert error(GPTQ(inputs, counts)) < 0.5 * error(GPTQ(inputs))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("width", "block"), [(64, 32), (96, 32), (40, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_onnx_runtime_reads_what_is_stored(bits: int, width: int, block: int, dtype: Any) -> None:
    weight = (RNG.standard_normal((24, width)) + 0.5).astype(np.float32)
    scales = scales_of(weight, Blocks(bits, block), dtype)
    integers = scales.nearest(weight)
    rows, layout = np.eye(width, dtype=dtype), {"K": width, "N": 24, "bits": bits, "block_size": block}
    found = computed("MatMulNBits", rows, scales, scales.packed(integers), dtype, layout)
    assert np.abs(found.T - stored(integers, scales)).max() <= (1e-6 if dtype == np.float32 else 4e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks", [1, 2, 3])  # zero points of four bits: two in a byte
def test_onnx_runtime_reads_an_embedding_of_any_number_of_blocks(bits: int, blocks: int) -> None:
    table = (RNG.standard_normal((7, 32 * blocks)) + 0.5).astype(np.float32)
    scales = scales_of(table, Blocks(bits, 32))
    integers = scales.nearest(table)
    layout = {"gather_axis": 0, "quantize_axis": 1, "block_size": 32, "bits": bits}
    found = computed(
        "GatherBlockQuantized", np.arange(7), scales, scales.packed(integers).reshape(7, -1), np.float32, layout
    )
    assert np.abs(found - stored(integers, scales)).max() <= 1e-6


@pytest.mark.parametrize("part", ["linear", "wide"])
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(part: str) -> None:
    """In the blocks of recipe `int4`. On AVX512-VNNI, blocks of 64 (4 bits) and of 128 (8 bits) fail: the last of an odd
    number of rows has a sum of its own. A run of one row is left out: the runtime computes two."""
    blocks: Blocks = getattr(four_bits(RECIPES["onnx", "int4"]), part)
    weight = RNG.standard_normal((24, 256)).astype(np.float32)
    scales = scales_of(weight, blocks)
    layout = {"K": 256, "N": 24, "bits": blocks.bits, "block_size": blocks.block, "accuracy_level": INT8_ACTIVATIONS}
    rows = RNG.standard_normal((24, 256)).astype(np.float32)

    def product(start: int, end: int) -> np.ndarray:
        integers = scales.packed(scales.nearest(weight))
        return computed("MatMulNBits", rows[start:end], scales, integers, np.float32, layout)

    whole = product(0, 24)
    pieces = [(start, end) for start in (0, 1, 7) for end in range(start + 2, 25)]
    assert [piece for piece in pieces if not np.array_equal(product(*piece), whole[slice(*piece)])] == []


def computed(
    operator: str, given: np.ndarray, scales: Scales, integers: np.ndarray, dtype: Any, layout: dict[str, int]
) -> np.ndarray:
    """What an operator of ONNX Runtime gives for one input and a stored weight, float32 `[rows, out]`."""
    onnx = pytest.importorskip("onnx", reason='a graph needs onnx: pip install "edge-prm[export]"')
    onnxruntime = pytest.importorskip("onnxruntime", reason='this needs onnxruntime: pip install "edge-prm[cpu]"')
    stored_as = {"weight": integers, "scales": scales.scales.astype(dtype)}
    if scales.blocks.has_zero_points:
        stored_as["zero"] = scales.packed_zero_points()
    order = ["given", "weight"] if operator == "MatMulNBits" else ["weight", "given"]
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    node = helper.make_node(operator, [*order, *list(stored_as)[1:]], ["out"], domain="com.microsoft", **layout)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("given", kind(given.dtype), given.shape)],
        [helper.make_tensor_value_info("out", kind(np.dtype(dtype)), ["m", "n"])],
        [onnx.numpy_helper.from_array(values, name) for name, values in stored_as.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"given": given})[0], np.float32)


@pytest.mark.parametrize(
    ("width", "wanted", "block"), [(1536, 64, 64), (8960, 128, 128), (896, 256, 128), (80, 64, 16)]
)
def test_a_block_divides_the_row(width: int, wanted: int, block: int) -> None:
    assert Blocks(4, wanted).fitting(width) == Blocks(4, block)


def test_the_channels_with_the_largest_effect_come_first() -> None:
    rows, is_read = np.ones((5, 6), np.float32), np.ones(5, np.bool_)
    entering = np.ones((5, 4), np.float32) * np.float32([1, 3, 2, 3])
    gate = up = np.ones((4, 6), np.float32)
    down = np.ones((6, 4), np.float32) * np.float32([1, 1, 2, 0.5])
    inputs = LayerInputs(rows, rows, rows, entering, is_read)
    assert np.argsort(-Effect.of(inputs, (gate, up, down)).channels).tolist() == [2, 1, 3, 0]


def test_with_derivatives_an_effect_is_what_rounding_does_to_rewards() -> None:
    """Noise in proportion to the weights, as rounding makes it, on one of SwiGLU's channels at a time."""
    channels, hidden, rows = 6, 16, 40
    gate, up = (RNG.standard_normal((channels, hidden)).astype(np.float32) for _ in range(2))
    gate[2] *= 4
    down = RNG.standard_normal((hidden, channels)).astype(np.float32)
    entering = of_unit_size(RNG.standard_normal((rows, hidden)))
    by_end = RNG.standard_normal((rows, hidden)).astype(np.float32) * np.float32([[3.0], [1.0]]).repeat(
        rows // 2, axis=0
    )
    empty = np.zeros((1, 1), np.float32)
    inputs = LayerInputs(empty, empty, empty, empty, np.ones(1, np.bool_), ResidualDerivatives(entering, by_end))
    effect = Effect.of(inputs, (gate, up, down)).channels

    def moved(channel: int) -> float:
        """The mean square of the change of rewards, to first order."""
        total = 0.0
        for _ in range(200):
            changed = [weight.copy() for weight in (gate, up, down)]
            for weight, size in ((changed[0][channel], gate[channel]), (changed[1][channel], up[channel])):
                weight += 1e-3 * RNG.standard_normal(hidden) * np.sqrt(COMPENSATED * (size**2).mean())
            changed[2][:, channel] += 1e-3 * RNG.standard_normal(hidden) * np.sqrt((down**2).mean())
            difference = _feed_forward(entering, *changed) - _feed_forward(entering, gate, up, down)
            total += float(((by_end * difference).sum(axis=1) ** 2).mean())
        return total

    assert np.allclose(effect / effect.sum(), _shares([moved(channel) for channel in range(channels)]), atol=0.05)


def _feed_forward(rows: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return swiglu(rows @ gate.T, rows @ up.T) @ down.T


def _shares(values: list[float]) -> np.ndarray:
    return np.array(values) / sum(values)


@pytest.mark.parametrize(
    ("channels", "share", "count"), [(8960, 0.125, 1152), (96, 0.125, 0), (96, 0.3, 32), (8, 0, 0)]
)
def test_wide_channels_are_whole_blocks(channels: int, share: float, count: int) -> None:
    assert wide_channels(channels, share) == count


WIDE = {"intermediate_size": 512}  # an eighth is one block: smaller feed-forward layers have no wide channels


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_wide_channels_are_in_the_manifest_and_leave_equal_bits(
    device: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    export, load = _exporting()
    source = write_checkpoint(tmp_path / "source", tokenizer_file, **WIDE)
    bundle = export(str(source), tmp_path / "out", recipe="int4", device=device)
    parts = {f"layer.{layer}.mlp.wide.{part}" for layer in range(2) for part in ("gate", "up", "down")}
    assert parts < set(read_manifest(bundle).recipe.weights.wide)
    with load(bundle, threads=1, device="cpu") as prm, prm.session(PROMPT) as session:
        pushed = [session.push(step, last=step is STEPS[-1]) for step in STEPS]
        assert pushed == list(prm.score(PROMPT, STEPS).rewards)


def test_a_feed_forward_layer_in_two_parts_is_the_same_layer(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights have 8 bits, so that a channel in the wrong place would show."""
    export, load = _exporting()
    source = write_checkpoint(tmp_path / "source", tokenizer_file, **WIDE)
    rewards = []
    for share in (0.0, 0.25):
        blocks = Blocks(8, 32)
        choice = NBitsChoice(blocks, blocks, blocks, wide_share=share)
        linears = partial(_eight_bit_linears, choice)
        monkeypatch.setitem(LINEARS, "w8a16", linears)
        bundle = export(str(source), tmp_path / f"out{share}", recipe="int8", device="cuda")
        with load(bundle, device="cpu") as prm:
            rewards.append(prm.score(PROMPT, STEPS).rewards)
    fp32 = load(export(str(source), tmp_path / "fp32", recipe="fp32"))
    expected = fp32.score(PROMPT, STEPS).rewards
    fp32.close()
    assert np.std(expected) > 0.02
    assert np.abs(np.subtract(rewards, expected)).max() < 0.04
    assert rewards[0] != rewards[1]


def _eight_bit_linears(choice: NBitsChoice, graph: GraphWriter, recipe: Recipe) -> NBitsLinears:
    return NBitsLinears(graph, choice, np.float16)


def _exporting() -> tuple[Any, Any]:
    pytest.importorskip("onnx", reason='an export needs onnx: pip install "edge-prm[export]"')
    pytest.importorskip("onnxruntime", reason='this needs onnxruntime: pip install "edge-prm[cpu]"')
    from edge_prm import load
    from edge_prm_export import export

    return export, load
