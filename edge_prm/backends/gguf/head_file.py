"""Read `reward_head.npz`: the linear layers of a reward head that does not fit into its GGUF file.

numpy's own reader trusts the archive: a damaged one ends in foreign errors, and a header may claim terabytes. So only
what `numpy.savez` writes for float32 arrays is read: fixed names, stored without compression, exactly as many bytes as
the shape says.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from edge_prm.arrays import Float32
from edge_prm.errors import BundleIntegrityError
from edge_prm.head import Layers

HEAD_NAME = "reward_head.npz"
MAX_LAYERS = 4
_MAX_HEADER_BYTES = 1 << 16
_HEADER = re.compile(
    rb"\{'descr': '<f4', 'fortran_order': (True|False), 'shape': \((\d{1,9}), ?(?:(\d{1,9}),? ?)?\), ?\} *\n"
)
_FOREIGN = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


def read_layers(path: Path, hidden: int) -> Layers:
    """Return (weight `[out, in]`, bias `[out]`) of each linear layer, float32; the first `in` is `hidden`.

    BundleIntegrityError when the file is damaged, or is not a head on hidden states of that size.
    """
    try:
        layers = _read(path, hidden)
    except _FOREIGN as error:
        raise BundleIntegrityError(path, f"not the reward head of this bundle ({error})") from None
    inputs = hidden
    for weight, bias in layers:
        fits = weight.ndim == 2 and weight.shape[1] == inputs and bias.shape == weight.shape[:1]
        if not fits or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise BundleIntegrityError(
                path, f"it holds a layer of shape {list(weight.shape)} that does not belong to a head"
            )
        inputs = len(weight)
    if not layers or inputs not in (1, 2):
        raise BundleIntegrityError(path, f"it ends in {inputs} outputs")
    return layers


def _read(path: Path, hidden: int) -> Layers:
    largest = 4 * hidden * max(hidden, 2) + _MAX_HEADER_BYTES
    if path.stat().st_size > MAX_LAYERS * 2 * largest:
        raise ValueError(f"it has {path.stat().st_size} bytes")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        count = len(entries) // 2
        names = [f"{part}.{index}.npy" for index in range(count) for part in ("weight", "bias")]
        if not 0 < count <= MAX_LAYERS or sorted(entries) != sorted(names) or len(archive.infolist()) != len(names):
            raise ValueError(f"it holds {', '.join(map(repr, sorted(entries)[:4])) or 'nothing'}")
        arrays = []
        for name in names:
            entry = entries[name]
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size > largest:
                raise ValueError(f"{name} is compressed, encrypted or {entry.file_size} bytes long")
            arrays.append(_array(name, archive.read(entry)))
    return tuple(zip(arrays[::2], arrays[1::2], strict=True))


def _array(name: str, data: bytes) -> Float32:
    """An array in numpy's own format, of version 1.0: magic, length of the header, header, values."""
    (length,) = struct.unpack_from("<H", data, 8)
    header = _HEADER.fullmatch(data, 10, 10 + length)
    if data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError(f"{name} is not an array of 32-bit floats")
    shape = tuple(int(size) for size in header.group(2, 3) if size is not None)
    if math.prod(shape) * 4 != len(data) - 10 - length:
        raise ValueError(f"{name} has {len(data) - 10 - length} bytes and shape {list(shape)}")
    values = np.frombuffer(data, dtype="<f4", offset=10 + length).astype(np.float32)
    return values.reshape(shape, order="F" if header.group(1) == b"True" else "C")
