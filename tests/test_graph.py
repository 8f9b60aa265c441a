"""The graph writer: a name is one value, and a repeated one is written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')

from edge_prm_export.onnx.writer import GraphWriter, WeightFile

SMALL, LARGE = (4,), (64, 64)


@pytest.fixture
def weights(tmp_path: Path) -> WeightFile:
    return WeightFile(tmp_path / "model.onnx.data")


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_the_same_name_with_another_value_is_refused(weights: WeightFile, shape: tuple[int, ...]) -> None:
    graph = GraphWriter(weights)
    graph.weight("w", np.ones(shape, dtype=np.float32))
    others = [
        np.full(shape, 2, dtype=np.float32),
        np.ones(shape, dtype=np.float16),
        np.ones((*shape, 1), dtype=np.float32),
    ]
    for other in others:
        with pytest.raises(ValueError, match="'w' is in the graph already, with another value"):
            graph.weight("w", other)


def test_a_constant_with_another_value_is_refused(weights: WeightFile) -> None:
    graph = GraphWriter(weights)
    assert graph.constant("axis", [0], np.int64) == graph.constant("axis", [0], np.int64) == "axis"
    for value, dtype in (([1], np.int64), ([0], np.int32), (0, np.int64)):
        with pytest.raises(ValueError, match="another value"):
            graph.constant("axis", value, dtype)


def test_a_streamed_weight_is_written_once(weights: WeightFile) -> None:
    graph = GraphWriter(weights)
    graph.weight("w", np.ones(LARGE, dtype=np.float32))
    with pytest.raises(ValueError, match="in the graph already"):
        graph.stream("w", np.float32, LARGE)
    streamed = graph.stream("s", np.float32, LARGE)
    streamed.write(np.ones(LARGE, dtype=np.float32))
    streamed.finish()
    with pytest.raises(ValueError, match="in the graph already"):
        graph.weight("s", np.ones(LARGE, dtype=np.float32))


def test_the_same_value_twice_is_written_once(weights: WeightFile) -> None:
    graph = GraphWriter(weights)
    for _ in range(3):
        assert graph.weight("w", np.ones(LARGE, dtype=np.float32)) == "w"
    assert weights.close().bytes == 64 * 64 * 4
