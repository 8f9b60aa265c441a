"""Do the 8-bit kernels of this processor saturate? One small product of integers answers it.

Processors without instructions for sums of four 8-bit products (VNNI, dot product) add two of them in 16 bits, where
2 * 255 * 127 has no room. ONNX Runtime uses such instructions; `--reduce-range` makes weights that have room.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_ROWS, _INNER, _COLUMNS = 32, 64, 32
_FLOAT, _UINT8, _INT8 = 1, 2, 3  # onnx.TensorProto.DataType
WEIGHT = 127


@cache
def saturates(weight: int = WEIGHT) -> bool | None:
    """Whether rows of 255 times columns of `weight` (int8) come out wrong on this CPU.

    None where it cannot be tried: ONNX Runtime is not installed, or does not know the operator.
    """
    rows = np.full((_ROWS, _INNER), 255, dtype=np.uint8)
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(_product(weight), options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"rows": rows})
    except Exception:  # whatever the engine raises: its errors have no common base
        return None
    return bool(np.abs(found - _INNER * 255 * weight).max() > 0.5)


def _product(weight: int) -> bytes:
    """A serialized ONNX model: u8 rows `[32, 64]` times an int8 matrix, as MatMulIntegerToFloat multiplies them."""
    inputs = ("rows", "weight", "one", "one", "zero")
    node = b"".join(_field(1, name.encode()) for name in inputs)
    node += _field(2, b"product") + _field(4, b"MatMulIntegerToFloat") + _field(7, b"com.microsoft")
    matrix = np.full((_INNER, _COLUMNS), weight, dtype=np.int8)
    graph = _field(1, node) + _field(2, b"saturation")
    for name, type_, values in (
        ("weight", _INT8, matrix),
        ("one", _FLOAT, np.ones((), dtype="<f4")),
        ("zero", _UINT8, np.zeros((), dtype=np.uint8)),
    ):
        graph += _field(5, _tensor(name, type_, values))
    graph += _field(11, _value("rows", _UINT8, (_ROWS, _INNER)))
    graph += _field(12, _value("product", _FLOAT, (_ROWS, _COLUMNS)))
    opsets = b"".join(
        _field(8, _field(1, domain) + _number(2, version)) for domain, version in ((b"", 21), (b"com.microsoft", 1))
    )
    return _number(1, 10) + _field(7, graph) + opsets


def _tensor(name: str, type_: int, values: np.ndarray) -> bytes:
    dims = b"".join(_number(1, size) for size in values.shape)
    return dims + _number(2, type_) + _field(8, name.encode()) + _field(9, values.tobytes())


def _value(name: str, type_: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, type_) + _field(2, dims)))


def _field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes: its key, the length, the bytes."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    """A protobuf field that is an integer."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
