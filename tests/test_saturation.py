"""Whether the processor's 8-bit kernels saturate is found by a product whose result is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edge_prm.backends.onnx.saturation import _product, saturates

pytest.importorskip("onnxruntime", reason='needs the engine: pip install "edge-prm[cpu]"')


def test_weights_of_seven_bits_never_saturate() -> None:
    assert saturates(63) is False


def test_the_answer_is_yes_or_no_and_the_same_each_time() -> None:
    assert saturates() in (True, False)
    assert saturates() == saturates.__wrapped__()


def test_the_model_is_one_that_onnx_accepts() -> None:
    onnx = pytest.importorskip("onnx", reason='a second reader: pip install "edge-prm[export]"')
    model = onnx.load_from_string(_product(127))
    onnx.checker.check_model(model)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert weight.dtype == np.int8
    assert (weight == 127).all()


def test_a_saturating_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clipping:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((32, 32), 32 * 32767, dtype=np.float32)]  # pairs of products, each at most 2**15 - 1

    monkeypatch.setattr("onnxruntime.InferenceSession", Clipping)
    assert saturates.__wrapped__() is True


def test_without_the_engine_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert saturates.__wrapped__() is None
