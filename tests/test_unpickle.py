"""reward_head.pt is read without torch, and nothing in it is ever run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import pickled_ints, pickled_storage, pickled_str, pickled_tensor, write_reward_head, write_torch_zip

import edge_prm_export.checkpoint.unpickle as unpickle_module
from edge_prm.errors import CheckpointError, UnsafePickleError
from edge_prm_export.checkpoint.unpickle import load_state_dict

WEIGHT = np.arange(6, dtype=np.float32).reshape(1, 6)
BIAS = np.array([0.5], dtype=np.float32)
START = b"\x80\x02"
SIX = {"0": WEIGHT.tobytes()}


class Call:
    """Pickles as a call of `function` with `arguments`, to be made when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def state_of(tensor: bytes) -> bytes:
    """A pickled {"weight": tensor}."""
    return START + b"}" + pickled_str("weight") + tensor + b"s."


# what is read


@pytest.mark.parametrize("metadata", [True, False])
def test_a_file_written_by_hand_is_read(tmp_path: Path, metadata: bool) -> None:
    state = load_state_dict(write_reward_head(tmp_path / "reward_head.pt", WEIGHT, BIAS, metadata=metadata))
    assert list(state) == ["weight", "bias"]
    assert np.array_equal(state["weight"], WEIGHT)
    assert np.array_equal(state["bias"], BIAS)
    assert all(values.dtype == np.float32 for values in state.values())


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16"])
def test_a_file_of_torch_is_read(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="a real file needs torch: pip install torch")
    head = torch.nn.Linear(6, 1).to(getattr(torch, kind))
    torch.save(head.state_dict(), tmp_path / "reward_head.pt")
    state = load_state_dict(tmp_path / "reward_head.pt")
    assert np.array_equal(state["weight"], head.weight.detach().float().numpy())
    assert np.array_equal(state["bias"], head.bias.detach().float().numpy())


def test_a_transposed_tensor_of_torch_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="a real file needs torch: pip install torch")
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"weight": whole.T[1:3]}, tmp_path / "reward_head.pt")
    assert np.array_equal(load_state_dict(tmp_path / "reward_head.pt")["weight"], whole.T[1:3].numpy())


def test_torch_reads_what_is_written_by_hand(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the judge of the format is torch: pip install torch")
    state = torch.load(write_reward_head(tmp_path / "reward_head.pt", WEIGHT, BIAS), weights_only=True)
    assert state["weight"].tolist() == WEIGHT.tolist()
    assert state._metadata == OrderedDict({"": {"version": 1}})


def test_a_tensor_may_be_a_part_of_its_storage(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "head.pt", state_of(pickled_tensor("0", 6, (1, 2), (1, 3), 2)), SIX)
    assert load_state_dict(path)["weight"].tolist() == [[2, 5]]


# what is refused, before it runs


def hostile_calls(sentinel: Path) -> dict[str, tuple[Any, str]]:
    touch = f"touch {sentinel}"
    return {
        "os.system": (Call(os.system, touch), "system"),
        "eval": (Call(eval, f"open({str(sentinel)!r}, 'w')"), "eval"),
        "exec": (Call(exec, f"open({str(sentinel)!r}, 'w')"), "exec"),
        "open": (Call(open, str(sentinel), "w"), "open"),
        "getattr": (Call(getattr, "text", "upper"), "getattr"),
        "numpy object": (np.array([1, None], dtype=object), "numpy"),
        "numpy array": (WEIGHT, "numpy"),
        "a path": (sentinel, "pathlib"),
    }


@pytest.mark.parametrize("where", ["alone", "in an ordered dict", "in a list"])
@pytest.mark.parametrize("name", hostile_calls(Path("x")))
def test_a_hostile_call_is_refused_by_name_and_never_made(tmp_path: Path, name: str, where: str) -> None:
    sentinel = tmp_path / "it-ran"
    call, said = hostile_calls(sentinel)[name]
    state = {"alone": call, "in an ordered dict": OrderedDict(weight=OrderedDict(x=call)), "in a list": [call]}
    data = pickle.dumps(state[where], protocol=2)
    with pytest.raises(UnsafePickleError, match="tensors only; nothing was run") as caught:
        load_state_dict(write_torch_zip(tmp_path / "reward_head.pt", data))
    assert said in str(caught.value)
    assert "reward_head.pt" in str(caught.value)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch load",
        "torch.hub load",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch LongStorage",
        "torch.storage _load_from_bytes",
        "collections OrderedDict.fromkeys",
        "builtins __import__",
        "__builtin__ eval",
        "posix system",
        "edge_prm_export.checkpoint.unpickle _rebuild_tensor",
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_name_that_is_no_tensor_is_refused(tmp_path: Path, name: str, protocol: int) -> None:
    module, attribute = name.split()
    if protocol == 2:
        data = START + f"c{module}\n{attribute}\n.".encode()
    else:
        data = b"\x80\x04" + pickled_str(module) + pickled_str(attribute) + b"\x93."
    with pytest.raises(UnsafePickleError) as caught:
        load_state_dict(write_torch_zip(tmp_path / "head.pt", data))
    assert f"{module}.{attribute}" in str(caught.value)


def test_a_hostile_call_behind_good_tensors_is_refused(tmp_path: Path) -> None:
    """The whole pickle is refused, not only what stands before the call."""
    sentinel = tmp_path / "it-ran"
    tensor = pickled_tensor("0", 6, (1, 6))
    call = b"cposix\nsystem\n(" + pickled_str(f"touch {sentinel}") + b"tR0"
    with pytest.raises(UnsafePickleError, match=r"posix\.system"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", state_of(tensor)[:-1] + call + b".", SIX))
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "persistent",
    [
        b"(" + pickled_str("module") + b"ctorch\nFloatStorage\n" + pickled_str("0") + pickled_str("cpu") + b"K\x06tQ",
        b"("
        + pickled_str("storage")
        + pickled_str("FloatStorage")
        + pickled_str("0")
        + pickled_str("cpu")
        + b"K\x06tQ",
        b"(" + pickled_str("storage") + b"ctorch\nFloatStorage\nK\x00" + pickled_str("cpu") + b"K\x06tQ",
    ],
    ids=["another kind", "a storage by name", "a key that is a number"],
)
def test_a_persistent_object_that_is_no_storage_is_refused(tmp_path: Path, persistent: bytes) -> None:
    with pytest.raises(UnsafePickleError, match="persistent object"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", START + persistent + b".", SIX))


@pytest.mark.parametrize("persistent", [b"K\x01Q", b")Q", pickled_str("storage") + b"Q", b"NQ"])
def test_a_persistent_object_of_another_shape_is_damage(tmp_path: Path, persistent: bytes) -> None:
    with pytest.raises(CheckpointError):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", START + persistent + b".", SIX))


@pytest.mark.parametrize("key", ["../version", "../data.pkl", "/etc/passwd", "1", ""])
def test_a_storage_that_is_not_among_the_data_is_damage(tmp_path: Path, key: str) -> None:
    data = state_of(pickled_tensor(key, 6, (1, 6)))
    with pytest.raises(CheckpointError):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((1, 7), (7, 1), 0),
        ((1, 6), (6, 1), 1),
        ((2, 6), (6, 1), 0),
        ((1, 6), (6, 2), 0),
        ((1, 2), (6, 1 << 40), 0),
        ((1, 6), (6, -1), 5),
        ((1, 6), (-6, 1), 0),
        ((1, -6), (6, 1), 0),
        ((1, 6), (6, 1), -1),
        ((1, 6), (6,), 0),
        ((1, 0), (1, 1), 0),
        ((1 << 62, 1 << 62), (0, 0), 0),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    data = state_of(pickled_tensor("0", 6, size, stride, offset))
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    """A stride of 0 makes any number of values out of one; four bytes would fill the memory."""
    data = state_of(pickled_tensor("0", 6, (1000, 1000), (0, 0)))
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))


def test_a_tensor_over_something_else_is_refused(tmp_path: Path) -> None:
    rest = b"K\x00" + pickled_ints((1, 6)) + pickled_ints((6, 1)) + b"\x89NtR"
    data = state_of(b"ctorch._utils\n_rebuild_tensor_v2\n(" + pickled_str("storage") + rest)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))


def test_a_storage_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    data = state_of(pickled_tensor("0", 8, (1, 6)))
    with pytest.raises(CheckpointError, match="holds 6 values and should hold 8"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))


@pytest.mark.parametrize(
    "value",
    [[1, 2], "text", None, {"weight": 1}, {"weight": {"nested": 1}}, {1: 2}],
    ids=["list", "text", "none", "number", "nested", "key"],
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UnsafePickleError, match="where a state dict of tensors should be"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", pickle.dumps(value, protocol=2)))


def test_a_bare_storage_is_no_tensor_of_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UnsafePickleError):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", START + pickled_storage("0", 6) + b".", SIX))


def test_a_name_that_is_looked_up_twice_cannot_be_changed_in_between(tmp_path: Path) -> None:
    """BUILD sets attributes on whatever a name gave; the next load must not see them."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    poison = rebuild + b"(N}" + pickled_str("__defaults__") + pickled_ints((1, 2)) + b"stb0"
    good = state_of(pickled_tensor("0", 6, (1, 6)))[len(START) :]
    path = write_torch_zip(tmp_path / "head.pt", START + poison + good, SIX)
    assert load_state_dict(path)["weight"].tolist() == WEIGHT.tolist()
    clean = write_reward_head(tmp_path / "clean.pt", WEIGHT, BIAS)
    assert load_state_dict(clean)["weight"].tolist() == WEIGHT.tolist()


# what is damaged or too large


def test_a_file_that_unpacks_to_more_than_a_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle_module, "MAX_BYTES", 1 << 20)
    path = tmp_path / "head.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state_of(pickled_tensor("0", 1 << 19, (1, 1 << 19))))
        archive.writestr("archive/data/0", bytes(4 << 19))
    assert path.stat().st_size < 1 << 14
    with pytest.raises(CheckpointError, match="unpacks to more than 1 MB"):
        load_state_dict(path)


@pytest.mark.parametrize(
    "doubled",
    [b"2\x86", b"q\x01h\x01\x86", b"q\x01q\x02h\x02\x86", b"N0q\x01h\x01\x86", b"Nbq\x01h\x01\x86"],
    ids=["dup", "get", "put twice", "put behind a pop", "put behind a build"],
)
def test_a_tuple_in_two_places_is_refused(tmp_path: Path, doubled: bytes) -> None:
    """Tuples of twice the tuple before, as a key: a few bytes, and years to hash them."""
    nested = b")" + doubled * 60
    for data in (b"}" + nested + b"Ns.", nested + b"Q."):
        with pytest.raises(UnsafePickleError, match="one value in two places"):
            load_state_dict(write_torch_zip(tmp_path / "head.pt", START + data))


def test_a_tuple_in_two_places_is_refused_in_newer_protocols(tmp_path: Path) -> None:
    nested = b")" + b"".join(b"\x94h" + bytes([level]) + b"\x86" for level in range(60))
    with pytest.raises(UnsafePickleError, match="one value in two places"):
        load_state_dict(write_torch_zip(tmp_path / "head.pt", b"\x80\x04}" + nested + b"Ns."))


def test_tensors_over_one_storage_are_read(tmp_path: Path) -> None:
    """A storage and a name may stand in two places, as in a file of torch with shared weights."""
    storage = pickled_storage("0", 6) + b"q\x01"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\nq\x02"
    rest = b"K\x00" + pickled_ints((1, 3)) + pickled_ints((3, 1)) + b"\x89NtR"
    first, second = rebuild + b"(" + storage + rest, b"h\x02(h\x01" + rest
    data = START + b"}(" + pickled_str("weight") + first + pickled_str("other") + second + b"u."
    state = load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))
    assert state["weight"].tolist() == state["other"].tolist() == [[0, 1, 2]]


def test_many_tensors_over_one_storage_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle_module, "MAX_BYTES", 1 << 20)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = b"K\x00" + pickled_ints((1, 1 << 15)) + pickled_ints((1 << 15, 1)) + b"\x89NtR"
    first = rebuild + pickled_storage("0", 1 << 15) + b"q\x01" + rest
    tensors = [first] + [rebuild + b"h\x01" + rest] * 8
    pairs = b"".join(pickled_str(f"t{index}") + tensor for index, tensor in enumerate(tensors))
    path = write_torch_zip(tmp_path / "head.pt", START + b"}(" + pairs + b"u.", {"0": bytes(4 << 15)})
    with pytest.raises(CheckpointError, match="unpacks to more than 1 MB"):
        load_state_dict(path)


def test_a_message_stays_short_whatever_the_file_holds(tmp_path: Path) -> None:
    persistent = b"(" + pickled_str("module") + pickled_str("x" * (1 << 20)) + b"NNNtQ"
    with pytest.raises(UnsafePickleError) as caught:
        load_state_dict(write_torch_zip(tmp_path / "head.pt", START + persistent + b"."))
    assert len(str(caught.value)) < 2000


def test_a_storage_cannot_be_given_another_name(tmp_path: Path) -> None:
    """BUILD on a storage type; the name would be looked up, and shown in whatever length."""
    poisoned = b"ctorch\nFloatStorage\n}" + pickled_str("name") + pickled_str("x" * (1 << 20)) + b"sb"
    persistent = b"(" + pickled_str("storage") + poisoned + pickled_str("0") + pickled_str("cpu") + b"K\x06tQ"
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(write_torch_zip(tmp_path / "head.pt", START + persistent + b".", SIX))
    assert len(str(caught.value)) < 2000


def test_a_storage_of_a_length_that_is_no_number_is_shown_shortened(tmp_path: Path) -> None:
    head = b"(" + pickled_str("storage") + b"ctorch\nFloatStorage\n" + pickled_str("0") + pickled_str("cpu")
    with pytest.raises(CheckpointError, match="holds 6 values") as caught:
        load_state_dict(
            write_torch_zip(tmp_path / "head.pt", START + head + pickled_str("x" * (1 << 20)) + b"tQ.", SIX)
        )
    assert len(str(caught.value)) < 2000


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    for data in (b"", b"PK", pickle.dumps({"weight": 1}), b"\x80\x02" * 100):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
            load_state_dict(path)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_reward_head(tmp_path / "head.pt", WEIGHT, BIAS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"head\.pt"):
        load_state_dict(path)


def test_a_truncated_pickle_is_refused(tmp_path: Path) -> None:
    for data in (b"", START, state_of(pickled_tensor("0", 6, (1, 6)))[:-1], b"\xff\xff"):
        with pytest.raises(CheckpointError, match="damaged"):
            load_state_dict(write_torch_zip(tmp_path / "head.pt", data, SIX))


def test_a_zip_without_a_pickle_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "head.pt", "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    with pytest.raises(CheckpointError, match=r"holds 0 data\.pkl"):
        load_state_dict(tmp_path / "head.pt")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write_reward_head(tmp_path / "head.pt", WEIGHT, BIAS)
    data = bytearray(path.read_bytes())
    data[data.find(WEIGHT.tobytes()) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_state_dict(path)
