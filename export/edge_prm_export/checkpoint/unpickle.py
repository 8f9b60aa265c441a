"""Read `torch.save(module.state_dict())` without torch, and without running anything the file asks for.

The file is a zip: `*/data.pkl` is a pickle that names storages, `*/data/KEY` are their bytes. The unpickler knows an
ordered dict, the storage types and torch's way to lay a tensor over a storage; any other name is refused. So is a
pickle that uses a tuple twice: tuples of tuples of one tuple take a few bytes, and forever to hash or to show.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_prm.errors import CheckpointError, UnsafePickleError

MAX_BYTES = 256 << 20  # a reward head is kilobytes; no zip bomb is unpacked, in the file or over its storages
_USED_TWICE = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "GLOBAL", "STACK_GLOBAL"),
    *("EMPTY_DICT", "EMPTY_LIST", "BINPERSID", "REDUCE"),
)
"""What makes a value that may be looked up again: never a tuple, whose hash and text are as long as all in it."""
_STORAGES = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bf16"}


class _Storage(NamedTuple):  # immutable: a pickle can set attributes on what a name gives
    name: str


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path
        self._read = read
        self._bytes_left = MAX_BYTES

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: self._rebuild(*arguments)  # a new object: a pickle can set attributes on it
        if module == "torch" and name in _STORAGES:
            return _Storage(name)
        raise UnsafePickleError(self._path, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> npt.NDArray[Any]:
        kind, storage, key, _device, count = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise UnsafePickleError(self._path, f"persistent object {short_repr(pid)}")
        data = self._read(key)
        self._spend(len(data))
        values = np.frombuffer(data, dtype=_dtype(storage.name))
        if len(values) != count:
            place = f"{self._path}: storage {short_repr(key)}"
            raise CheckpointError(f"{place} holds {len(values)} values and should hold {short_repr(count)}")
        return values

    def _rebuild(self, *arguments: Any) -> npt.NDArray[Any]:
        tensor = _rebuild_tensor(*arguments)
        self._spend(tensor.size * 4)  # float32 in the end
        return tensor

    def _spend(self, count: int) -> None:
        """Many tensors can lie over one storage, and one storage be read many times."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise CheckpointError(_too_large(self._path))


def load_state_dict(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors of a state dict as float32.

    Raises UnsafePickleError when the pickle asks for anything but tensors, CheckpointError when it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise CheckpointError(_too_large(path))
            pickles = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} holds {len(pickles)} data.pkl; save it again with torch.save")
            root = pickles[0][: -len("data.pkl")]
            data = archive.read(pickles[0])
            _refuse_shared_tuples(data, path)
            state = _Unpickler(data, path, lambda key: archive.read(f"{root}data/{key}")).load()
    except CheckpointError:
        raise
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is not a file of torch.save (or of torch before 1.6); save it again") from None
    except Exception as error:  # a damaged pickle can raise anything; none of it has run
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); get it again") from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, np.ndarray) for key, value in state.items()
    ):
        raise UnsafePickleError(path, f"{type(state).__name__} where a state dict of tensors should be")
    return {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in state.items()}


def _refuse_shared_tuples(data: bytes, path: Path) -> None:
    """Read the opcodes, running none, and follow what is looked up again to what made it."""
    made_by: dict[int, str] = {}
    previous = ""
    for opcode, argument, _position in pickletools.genops(data):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            made_by[int(argument or 0)] = previous
        elif name == "MEMOIZE":
            made_by[len(made_by)] = previous
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if made_by.get(int(argument or 0), "") not in _USED_TWICE:
                raise UnsafePickleError(path, "one value in two places")
        elif name == "DUP":  # no pickler writes it
            raise UnsafePickleError(path, "one value in two places")
        previous = name


def _too_large(path: Path) -> str:
    return f"{path} unpacks to more than {MAX_BYTES >> 20} MB; a reward head is far smaller"


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _requires_grad: Any = None, _hooks: Any = None, *_: Any
) -> npt.NDArray[Any]:
    """Lay a tensor over a storage, as torch._utils._rebuild_tensor_v2 does; never outside of it."""
    if not isinstance(storage, np.ndarray):
        raise ValueError(f"a tensor over {type(storage).__name__}")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"a tensor of size {short_repr(size)} and stride {short_repr(stride)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size or last >= len(storage) or math.prod(size) > len(storage):  # a stride of 0 repeats values
        raise ValueError(f"a tensor of size {short_repr(size)} that does not fit its storage of {len(storage)} values")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape=size, strides=strides, writeable=False).copy()


def _dtype(storage: str) -> np.dtype[Any]:
    if _STORAGES[storage] == "bf16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_STORAGES[storage])
