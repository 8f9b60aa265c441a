"""GGUF files that are damaged, hostile, of another model or not ours are refused before llama.cpp sees them."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import opened, write_checkpoint

from edge_prm.backends.gguf.checks import read_head
from edge_prm.backends.gguf.head_file import HEAD_NAME
from edge_prm.backends.gguf.model import GgufModel
from edge_prm.bundle import Bundle
from edge_prm.errors import BundleIntegrityError, MissingExtraError, UnsupportedArchitectureError
from edge_prm.manifest import Architecture, Manifest

pytest.importorskip("gguf", reason='GGUF files are written with gguf: pip install "edge-prm[export]"')
pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')

from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.head import read_head as head_of_checkpoint
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.gguf.bundle import check_rows
from edge_prm_export.gguf.candidate import transforms_of
from edge_prm_export.gguf.head import write_head_file
from edge_prm_export.gguf.vocabulary import spare_rows
from edge_prm_export.gguf.writer import write_gguf

KINDS = {"F32": 1e-6, "Q8_0": 1e-4, "F16": 1e-5, "BF16": 1e-4}


def architecture_of(checkpoint: Any) -> Architecture:
    config = checkpoint.config
    return Architecture(
        "qwen2", config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim, config.vocabulary, config.intermediate
    )  # fmt: skip


def decoder_of(checkpoint: Checkpoint, *, rotated: bool = False) -> TransformedDecoder:
    return TransformedDecoder(checkpoint, transforms_of(checkpoint.config, (), rotated=rotated))


@pytest.fixture(scope="module")
def gguf_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]) -> Callable[..., Path]:
    """(head, kind, rotated) -> GGUF file with its head beside it where there is one; not to be changed."""
    made: dict[tuple[str, str, bool], Path] = {}

    def make(head: str = "sigmoid", kind: str = "Q8_0", rotated: bool = False) -> Path:
        if (head, kind, rotated) not in made:
            folder = tmp_path_factory.mktemp("gguf")
            checkpoint = opened(checkpoint_of(head))
            decoder = decoder_of(checkpoint, rotated=rotated)
            head_ = head_of_checkpoint(checkpoint)
            names = list(write_gguf(folder / "model.gguf", checkpoint, decoder, head_, kind, kind))
            assert len(names) == len(set(names)) == 2 + 12 * checkpoint.config.layers
            write_head_file(folder / HEAD_NAME, decoder, head_)
            made[head, kind, rotated] = folder / "model.gguf"
        return made[head, kind, rotated]

    return make


@pytest.fixture(scope="module")
def architecture(checkpoint_of: Callable[[str], Path]) -> Architecture:
    return architecture_of(opened(checkpoint_of("sigmoid")))


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_head_inside_is_the_checkpoint_s_in_full_precision(
    gguf_of: Callable[..., Path],
    checkpoint_of: Callable[[str], Path],
    architecture: Architecture,
    kind: str,
    rotated: bool,
) -> None:
    checkpoint = opened(checkpoint_of("sigmoid"))
    ((expected, bias),) = head_of_checkpoint(checkpoint).layers
    expected = decoder_of(checkpoint, rotated=rotated).head(expected)
    ((weight, found_bias),) = read_head(gguf_of("sigmoid", kind, rotated), architecture, None)
    assert np.abs(weight - expected).max() <= KINDS[kind] * np.abs(expected).max()
    assert found_bias == bias


def test_the_file_is_an_ordinary_qwen2_model_to_the_gguf_package(
    gguf_of: Callable[..., Path], checkpoint_of: Callable[[str], Path]
) -> None:
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(gguf_of())
    assert reader.fields["general.architecture"].contents() == "qwen2"
    checkpoint = opened(checkpoint_of("sigmoid"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = tensors["blk.1.ffn_up.weight"]
    weight = checkpoint.tensor("model.layers.1.mlp.up_proj.weight")
    assert np.abs(dequantize(stored.data, stored.tensor_type) - weight).max() <= np.abs(weight).max() / 200
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens[spare_rows(checkpoint)[0]].startswith("[PAD")
    assert not any(token.startswith("[PAD") for token in tokens[: spare_rows(checkpoint)[0]])


@pytest.mark.parametrize("head", ["two_class", "token_class"])
def test_a_head_that_stands_beside_is_read(
    gguf_of: Callable[..., Path], checkpoint_of: Callable[[str], Path], architecture: Architecture, head: str
) -> None:
    checkpoint = opened(checkpoint_of(head))
    path = gguf_of(head)
    layers = read_head(path, architecture, path.with_name(HEAD_NAME))
    expected = head_of_checkpoint(checkpoint).layers
    assert len(layers) == len(expected)
    assert np.allclose(layers[0][0], decoder_of(checkpoint).head(expected[0][0]))
    with pytest.raises(BundleIntegrityError, match="the manifest lists no reward_head"):
        read_head(path, architecture, None)


def test_without_rows_to_spare_a_sigmoid_head_stands_beside(tmp_path: Path, tokenizer_file: Path) -> None:
    from tokenizers import Tokenizer

    size = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size(with_added_tokens=True)
    checkpoint = opened(write_checkpoint(tmp_path / "full", tokenizer_file, vocab_size=size + 1))
    head = head_of_checkpoint(checkpoint)
    decoder = decoder_of(checkpoint)
    list(write_gguf(tmp_path / "model.gguf", checkpoint, decoder, head, "Q8_0", "Q8_0"))
    write_head_file(tmp_path / HEAD_NAME, decoder, head)
    ((weight, _),) = read_head(tmp_path / "model.gguf", architecture_of(checkpoint), tmp_path / HEAD_NAME)
    assert np.array_equal(weight, decoder_of(checkpoint).head(head.layers[0][0]))


def test_an_untied_output_matrix_is_left_out(
    tmp_path: Path, tokenizer_file: Path, gguf_of: Callable[..., Path]
) -> None:
    checkpoint = opened(write_checkpoint(tmp_path / "untied", tokenizer_file, tied=False, dtype="fp32"))
    decoder = decoder_of(checkpoint)
    names = list(write_gguf(tmp_path / "m.gguf", checkpoint, decoder, head_of_checkpoint(checkpoint), "Q8_0", "Q8_0"))
    assert "output.weight" not in names
    assert (tmp_path / "m.gguf").stat().st_size == gguf_of().stat().st_size


def test_rows_that_are_no_number_of_blocks_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    checkpoint = opened(write_checkpoint(tmp_path / "odd", tokenizer_file, intermediate_size=144))
    with pytest.raises(UnsupportedArchitectureError, match="rows of 144 values"):
        check_rows(checkpoint, "Q4_K_M")
    check_rows(checkpoint, "F16")


# damage


def refused(path: Path, architecture: Architecture, said: str = "", head_file: Path | None = None) -> None:
    with pytest.raises(BundleIntegrityError) as caught:
        read_head(path, architecture, head_file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 3}, "qwen2.block_count is 2 and should be 3"),
        ({"hidden": 128}, "qwen2.embedding_length"),
        ({"kv_heads": 1}, "head_count_kv"),
        ({"vocabulary": 100}, "qwen2.vocab_size"),
        ({"intermediate": 64}, "feed_forward_length"),
        ({"head_dim": 32}, "key_length"),
    ],
)
def test_a_file_of_another_model_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, changes: dict[str, int], said: str
) -> None:
    refused(gguf_of(), replace(architecture, **changes), said)


@pytest.mark.parametrize("length", [0, 3, 4, 8, 23, 24, 400, 5000])
def test_a_file_that_ends_too_soon_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path, length: int
) -> None:
    whole = gguf_of().read_bytes()
    for data in (whole[:length], whole[: len(whole) - max(length, 64)]):
        (tmp_path / "short.gguf").write_bytes(data)
        refused(tmp_path / "short.gguf", architecture)


def test_what_is_no_gguf_is_refused(architecture: Architecture, tmp_path: Path) -> None:
    for data in (b"not a model", b"GGUF" + b"\xff" * 400, b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)):
        (tmp_path / "x.gguf").write_bytes(data)
        refused(tmp_path / "x.gguf", architecture)
    refused(tmp_path / "none.gguf", architecture)
    refused(tmp_path, architecture)


Field = tuple[str, int, bytes]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def edited(path: Path, target: Path, change: Callable[[list[Field]], Sequence[Field]]) -> Path:
    """A copy whose metadata fields (name, type, bytes of the value) are changed; tensors stay as they are."""
    data = path.read_bytes()
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    stream = io.BytesIO(data)
    stream.read(8)
    tensors, count = struct.unpack("<QQ", stream.read(16))

    def string() -> bytes:
        raw = stream.read(8)
        return raw + stream.read(struct.unpack("<Q", raw)[0])

    def value(kind: int) -> bytes:
        if kind in sizes:
            return stream.read(sizes[kind])
        if kind == 8:
            return string()
        head = stream.read(12)
        inner, length = struct.unpack("<IQ", head)
        return head + b"".join(value(inner) for _ in range(length))

    fields = []
    for _ in range(count):
        name = string()[8:].decode()
        (kind,) = struct.unpack("<I", stream.read(4))
        fields.append((name, kind, value(kind)))
    start = stream.tell()
    for _ in range(tensors):
        string()
        stream.read(8 * struct.unpack("<I", stream.read(4))[0] + 12)
    infos, data_start = data[start : stream.tell()], -(-stream.tell() // 32) * 32
    fields = list(change(fields))
    head = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(fields))
    head += b"".join(text(name) + struct.pack("<I", kind) + raw for name, kind, raw in fields) + infos
    target.write_bytes(head + b"\0" * (-len(head) % 32) + data[data_start:])
    return target


def put(name: str, kind: int, raw: bytes) -> Callable[[list[Field]], Sequence[Field]]:
    return lambda fields: [(name, kind, raw) if field[0] == name else field for field in fields]


def test_a_copy_without_changes_is_taken(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path
) -> None:
    path = edited(gguf_of(), tmp_path / "same.gguf", lambda fields: fields)
    assert np.array_equal(read_head(path, architecture, None)[0][0], read_head(gguf_of(), architecture, None)[0][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: [f for f in fields if not f[0].startswith("edge_prm.")], "no reward head of edge-prm"),
        (lambda fields: [f for f in fields if f[0] != "edge_prm.head.scale"], "edge_prm.head.scale is None"),
        (lambda fields: [f for f in fields if f[0] != "tokenizer.ggml.merges"], "tokenizer.ggml.merges"),
        (
            lambda fields: [*fields, ("general.alignment", 4, struct.pack("<I", 7))],
            "unexpected key 'general.alignment'",
        ),
        (lambda fields: [*fields, fields[3]], "duplicate key"),
        (put("general.architecture", 8, text("llama")), "architecture is 'llama' and should be 'qwen2'"),
        (put("edge_prm.head.row", 4, struct.pack("<I", 1 << 31)), "reward head is in rows 2147483648"),
        (put("edge_prm.head.row", 5, struct.pack("<i", -1)), "reward head"),
        (put("edge_prm.head.scale", 6, struct.pack("<f", 0.0)), "scale 0.0"),
        (put("edge_prm.head.scale", 6, struct.pack("<f", float("nan"))), "edge_prm.head.scale is nan"),
        (put("edge_prm.head.bias", 6, struct.pack("<f", float("inf"))), "edge_prm.head.bias is inf"),
        (put("edge_prm.head.bias", 8, text("0")), "edge_prm.head.bias is '0'"),
        (put("qwen2.block_count", 7, b"\1"), "qwen2.block_count is True"),
        (put("qwen2.rope.freq_base", 6, struct.pack("<f", -1.0)), "qwen2.rope.freq_base is -1.0"),
        (put("tokenizer.ggml.model", 8, text("bert")), "tokenizer.ggml.model is 'bert'"),
        (put("tokenizer.ggml.model", 8, text("llama")), "unexpected key 'tokenizer.ggml.pre'"),
        (put("tokenizer.ggml.pre", 8, text("falcon")), "tokenizer.ggml.pre is 'falcon'"),
        (put("tokenizer.ggml.add_bos_token", 4, struct.pack("<I", 1)), "add_bos_token is 1"),
        (put("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, 2) + b"\0" * 8), "token_type has 2 items"),
        (put("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 5, 0)), "a list of type 9"),
        (put("tokenizer.ggml.tokens", 8, text("a")), "tokenizer.ggml.tokens is missing, or is not a list"),
    ],
)
def test_metadata_that_the_exporter_does_not_write_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path, change: Any, said: str
) -> None:
    refused(edited(gguf_of(), tmp_path / "edited.gguf", change), architecture, said)


def strings(*items: bytes) -> bytes:
    return struct.pack("<IQ", 8, len(items)) + b"".join(struct.pack("<Q", len(item)) + item for item in items)


def changed_strings(key: str, change: Callable[[list[bytes]], None]) -> Callable[[list[Field]], Sequence[Field]]:
    """Change the items of a list of strings."""

    def changed(fields: list[Field]) -> Sequence[Field]:
        (raw,) = (raw for name, _, raw in fields if name == key)
        items, at = [], 12
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            items.append(raw[at + 8 : at + 8 + length])
            at += 8 + length
        change(items)
        return put(key, 9, strings(*items))(fields)

    return changed


def setting(index: int, value: bytes) -> Callable[[list[bytes]], None]:
    return lambda items: items.__setitem__(index, value)


TOKENS, MERGES, TYPES = (f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type"))


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        (TOKENS, lambda items: items.__setitem__(7, items[3]), "tokens 3 and 7 are both"),
        (TOKENS, lambda items: items.__setitem__(7, items[3] + b"\0x"), "token 7 is empty or holds a zero byte"),
        (TOKENS, setting(5, b""), "token 5 is empty"),
        (TOKENS, setting(5, b"\0"), "token 5 is empty"),
        (MERGES, setting(2, b"ab"), "merge 2 is b'ab' and should be two tokens"),
        (MERGES, setting(0, b" a"), "merge 0"),
        (MERGES, setting(0, b"a "), "merge 0"),
        (MERGES, setting(0, b"a b c"), "merge 0"),
        (MERGES, setting(0, b""), "merge 0"),
        (MERGES, setting(0, b"a\0 b"), "merge 0"),
    ],
)
def test_a_vocabulary_that_llama_cpp_ends_the_process_for_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path, key: str, change: Any, said: str
) -> None:
    refused(edited(gguf_of(), tmp_path / "edited.gguf", changed_strings(key, change)), architecture, said)


@pytest.mark.parametrize("kind", [-1, 7, 1 << 30])
def test_a_token_type_that_is_none_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path, kind: int
) -> None:
    raw = struct.pack("<IQ", 5, architecture.vocabulary) + struct.pack("<i", kind) * architecture.vocabulary
    refused(edited(gguf_of(), tmp_path / "edited.gguf", put(TYPES, 9, raw)), architecture, "token types lie between")


def test_an_end_of_text_that_is_no_token_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path
) -> None:
    change = put("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", architecture.vocabulary))
    refused(edited(gguf_of(), tmp_path / "edited.gguf", change), architecture, "eos_token_id")


@pytest.mark.parametrize("changes", [{"heads": 3, "kv_heads": 2}, {"head_dim": 15}])
def test_sizes_that_llama_cpp_has_no_attention_for_are_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, changes: dict[str, int]
) -> None:
    refused(gguf_of(), replace(architecture, **changes), "the manifest has")


@given(data=st.data())
def test_random_damage_in_the_header_never_escapes(
    gguf_of: Callable[..., Path],
    architecture: Architecture,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    whole = bytearray(gguf_of().read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 16_000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(whole)
    try:
        ((weight, bias),) = read_head(path, architecture, None)
    except BundleIntegrityError:
        return
    assert weight.shape == (1, architecture.hidden)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"other": np.zeros(1)}, "not the reward head"),
        ({"weight.0": np.zeros((2, 64), np.float32)}, "not the reward head"),
        ({"weight.0": np.zeros((2, 63), np.float32), "bias.0": np.zeros(2, np.float32)}, "shape [2, 63]"),
        (
            {"weight.0": np.zeros((2, 64), np.float64), "bias.0": np.zeros(2, np.float64)},
            "not an array of 32-bit floats",
        ),
        ({"weight.0": np.zeros((3, 64), np.float32), "bias.0": np.zeros(3, np.float32)}, "ends in 3 outputs"),
        (
            {"weight.0": np.full((1, 64), np.nan, np.float32), "bias.0": np.zeros(1, np.float32)},
            "does not belong to a head",
        ),
        ({"weight.0": np.array([object()]), "bias.0": np.zeros(1)}, "not the reward head"),
    ],
)
def test_a_head_beside_that_is_damaged_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / HEAD_NAME, **arrays)  # type: ignore[arg-type]
    refused(gguf_of("two_class"), architecture, said, tmp_path / HEAD_NAME)


def hostile_archive(path: Path, change: Callable[[bytearray], object], **options: Any) -> Path:
    """A head of numpy's, compressed or not, whose bytes are changed after that."""
    save = np.savez_compressed if options.pop("compressed", False) else np.savez
    save(path, **{"weight.0": np.zeros((1, 64), np.float32), "bias.0": np.zeros(1, np.float32)})
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def in_entries(local: int, central: int, value: bytes) -> Callable[[bytearray], None]:
    """Write `value` at an offset of every local header, and of every entry of the directory."""

    def change(data: bytearray) -> None:
        for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            at = data.find(signature)
            while at >= 0:
                data[at + offset : at + offset + len(value)] = value
                at = data.find(signature, at + 1)

    return change


def claims_terabytes(data: bytearray) -> None:
    for at in range(len(data)):
        if data[at : at + 7] == b"(1, 64)":
            data[at : at + 20] = b"(99999999, 99999999)"


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda data: data.__setitem__(slice(60, 90), b"\xff" * 30), {"compressed": True}),  # a bad deflate stream
        (lambda data: None, {"compressed": True}),  # the exporter never compresses
        (in_entries(6, 8, b"\1"), {}),  # encrypted
        (in_entries(8, 10, b"\x63"), {}),  # an unknown compression
        (claims_terabytes, {}),
        (lambda data: data.__setitem__(-8, 0x7F), {}),  # the directory lies elsewhere
        (in_entries(14, 16, b"\0\0\0\0"), {}),  # a wrong checksum
        (in_entries(22, 24, b"\xff\xff\xff\x7f"), {}),  # 2 GB
        (lambda data: data.extend(b"\0" * (1 << 22)), {}),
    ],
)
def test_a_hostile_head_beside_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path, change: Any, options: dict[str, Any]
) -> None:
    refused(
        gguf_of("two_class"),
        architecture,
        "not the reward head",
        hostile_archive(tmp_path / HEAD_NAME, change, **options),
    )


@given(data=st.data())
def test_random_damage_in_a_head_beside_never_escapes(
    gguf_of: Callable[..., Path],
    architecture: Architecture,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    def damage(raw: bytearray) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))

    path = hostile_archive(tmp_path_factory.getbasetemp() / HEAD_NAME, damage)
    try:
        ((weight, _),) = read_head(gguf_of("two_class"), architecture, path)
    except BundleIntegrityError:
        return
    assert weight.shape == (1, architecture.hidden)


def test_a_head_in_the_order_of_fortran_is_read(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path
) -> None:
    first = np.asfortranarray(np.arange(128, dtype=np.float32).reshape(2, 64))
    np.savez(tmp_path / HEAD_NAME, **{"weight.0": first, "bias.0": np.ones(2, np.float32)})
    ((weight, bias),) = read_head(gguf_of("two_class"), architecture, tmp_path / HEAD_NAME)
    assert np.array_equal(weight, first)
    assert np.array_equal(bias, np.ones(2))


def test_a_head_beside_that_is_no_archive_is_refused(
    gguf_of: Callable[..., Path], architecture: Architecture, tmp_path: Path
) -> None:
    (tmp_path / HEAD_NAME).write_bytes(b"PK\x03\x04 nothing")
    refused(gguf_of("two_class"), architecture, "not the reward head", tmp_path / HEAD_NAME)
    refused(gguf_of("two_class"), architecture, "not the reward head", tmp_path / "none.npz")


def test_without_llama_cpp_its_extra_is_named(
    manifest_for: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtraError, match=r"llama-cpp-python not installed.*edge-prm\[gguf\]"):
        GgufModel(Bundle(tmp_path, manifest_for()))
