"""Products of recipe `int8`, in ONNX Runtime, against the same products in floating point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason='this needs onnxruntime: pip install "edge-prm[cpu]"')
pytest.importorskip("onnx", reason='this needs onnx: pip install "edge-prm[export]"')

from edge_prm_export.onnx.int8 import _groups
from edge_prm_export.onnx.int8_products import Int8Products
from edge_prm_export.onnx.linears import Streams
from edge_prm_export.onnx.writer import GraphWriter, WeightFile

WIDTH, OUT = 96, 40
RNG = np.random.default_rng(4)
ROWS = RNG.standard_normal((9, WIDTH)).astype(np.float32)
WEIGHT = RNG.standard_normal((OUT, WIDTH)).astype(np.float32) / 10
READ = [3, 8]


def run(folder: Path, kind: str, streams: Streams, rows: np.ndarray = ROWS) -> dict[str, np.ndarray]:
    """The products of `rows`, and of those at READ as a second stream, by the name of the stream."""
    import onnxruntime

    weights = WeightFile(folder / "model.onnx.data")
    graph = GraphWriter(weights)
    graph.input("rows", np.float32, ["s", WIDTH])
    graph.input("ids", np.int64, ["s"])
    graph.input("read_at", np.int64, ["r"])
    graph.node("Gather", ["rows", "read_at"], "rows.read", axis=0)
    products = Int8Products(graph, 127)
    products.declare_counts("ids")
    stored = products.store("linear", WEIGHT, None)
    if kind == "normed":
        found = products.products("product", products.join_normed("joined", streams), stored)
    else:
        found = products.scaled_products("product", streams, stored)
    names = [name for _, name in found.named()]
    for name in names:
        graph.output(name, np.float32, ["n", OUT])
    weights.close()
    (folder / "model.onnx").write_bytes(graph.model("test"))
    feed: dict[str, Any] = {"rows": rows, "ids": np.zeros(len(rows), np.int64), "read_at": np.array(READ)}
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    used = {entry.name for entry in session.get_inputs()}
    outputs = session.run(names, {name: value for name, value in feed.items() if name in used})
    return dict(zip((suffix for suffix, _ in found.named()), outputs, strict=True))


@pytest.mark.parametrize("kind", ["normed", "scaled"])
def test_rows_of_read_positions_err_far_less_than_the_others(kind: str, tmp_path: Path) -> None:
    found = run(tmp_path, kind, Streams("rows", "rows.read"))
    exact = ROWS @ WEIGHT.T
    scales = np.abs(WEIGHT).max(axis=1) / 127
    rounded = np.rint(WEIGHT / scales[:, None]) * scales[:, None]  # what weights lose, all rows lose alike
    activations_alone = ROWS @ rounded.T
    all_rows, read = found[""][: len(ROWS)], found[".read"]
    assert np.abs(all_rows - exact).max() < 0.1
    coarse, fine = np.abs(all_rows - activations_alone).mean(), np.abs(read - activations_alone[READ]).mean()
    assert fine < coarse / 50


@pytest.mark.parametrize("kind", ["normed", "scaled"])
@pytest.mark.parametrize("alone", [Streams("rows"), Streams("", "rows.read")])
def test_a_stream_alone_has_the_bits_that_it_has_beside_the_other(kind: str, alone: Streams, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    both = run(tmp_path / "both", kind, Streams("rows", "rows.read"))
    ((suffix, rows),) = run(tmp_path, kind, alone).items()
    expected = both[suffix][: len(rows)]
    if (kind, suffix) == ("normed", ".read"):  # the unit of a product is that of its first rows
        assert np.allclose(rows, expected, atol=1e-5)
    else:
        assert np.array_equal(rows, expected)


def test_the_hi_part_of_a_read_position_reaches_beyond_the_clip_of_the_others(tmp_path: Path) -> None:
    far = ROWS.copy()
    far[READ[0], 0] = 6.0
    found = run(tmp_path, "normed", Streams("rows", "rows.read"), far)
    exact = far @ WEIGHT.T
    assert np.abs(found[".read"] - exact[READ]).max() < 0.05
    assert np.abs(found[""][READ[0]] - exact[READ[0]]).max() > 0.1  # clipped at 3.9


def test_groups_hold_each_channel_once_and_the_largest_first() -> None:
    products = np.ones((3, 8960), np.float32)
    products[1, [5, 700]] = 40, -50
    groups = _groups(products, (1 / 32, 1 / 2))
    assert [len(group) for group in groups] == [256, 4480 - 256, 4480]
    assert sorted(np.concatenate(groups).tolist()) == list(range(8960))
    assert groups[0][:2].tolist() == [700, 5]


@pytest.mark.parametrize(("channels", "cuts"), [(96, ()), (64, (1 / 32, 1 / 2)), (7, ())])
def test_channels_that_are_too_few_for_groups_stay_in_order(channels: int, cuts: tuple[float, ...]) -> None:
    groups = _groups(np.random.default_rng(0).standard_normal((3, channels)), cuts)
    assert [group.tolist() for group in groups] == [list(range(channels))]
