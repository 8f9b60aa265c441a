"""Files that an ONNX graph asks for must be files of the manifest, wherever in the graph it names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import need_engine
from hypothesis import given
from hypothesis import strategies as st

import edge_prm
from edge_prm.backends import EngineOptions
from edge_prm.backends.onnx.files import check_external_data
from edge_prm.backends.onnx.session import open_session
from edge_prm.bundle import sha256_of
from edge_prm.errors import BackendError, BundleIntegrityError
from edge_prm.manifest import FileEntry

need_engine("onnx")
import onnx  # noqa: E402

LISTED = {"model.onnx", "model.onnx.data", "tokenizer.json"}
HOSTILE = ["../secret", "/etc/passwd", "other.data", "./model.onnx.data", "*/_ORT_MEM_ADDR_/*", "", "a/model.onnx.data"]


def external(location: str) -> Any:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def as_initializer(tensor: Any) -> Any:
    return onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor]))


def as_attribute(tensor: Any) -> Any:
    node = onnx.NodeProto(op_type="Constant", attribute=[onnx.AttributeProto(name="value", type=4, t=tensor)])
    return onnx.ModelProto(graph=onnx.GraphProto(node=[node]))


def in_a_branch(tensor: Any) -> Any:
    inner = as_attribute(tensor).graph
    node = onnx.NodeProto(op_type="If", attribute=[onnx.AttributeProto(name="then_branch", type=5, g=inner)])
    return onnx.ModelProto(graph=onnx.GraphProto(node=[node]))


def in_a_list(tensor: Any) -> Any:
    attribute = onnx.AttributeProto(name="values", type=9, tensors=[onnx.TensorProto(name="a"), tensor])
    return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type="X", attribute=[attribute])]))


def as_sparse(tensor: Any) -> Any:
    return onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[onnx.SparseTensorProto(values=tensor)]))


def in_a_function(tensor: Any) -> Any:
    return onnx.ModelProto(functions=[onnx.FunctionProto(name="f", node=as_attribute(tensor).graph.node)])


def in_training(tensor: Any) -> Any:
    return onnx.ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=as_initializer(tensor).graph)])


PLACES = (as_initializer, as_attribute, in_a_branch, in_a_list, as_sparse, in_a_function, in_training)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_is_not_listed_is_refused_wherever_it_is_named(tmp_path: Path, place: Callable[..., Any]) -> None:
    path = tmp_path / "model.onnx"
    for location in HOSTILE:
        path.write_bytes(place(external(location)).SerializeToString())
        with pytest.raises(BundleIntegrityError, match="which the manifest does not list"):
            check_external_data(path, LISTED)
    path.write_bytes(place(external("model.onnx.data")).SerializeToString())
    check_external_data(path, LISTED)


def test_each_of_two_locations_counts(tmp_path: Path) -> None:
    tensor = external("model.onnx.data")
    tensor.external_data.add(key="location", value="../x")
    (tmp_path / "model.onnx").write_bytes(as_initializer(tensor).SerializeToString())
    with pytest.raises(BundleIntegrityError, match=r"asks for the file '\.\./x'"):
        check_external_data(tmp_path / "model.onnx", LISTED)


def test_a_second_graph_counts(tmp_path: Path) -> None:
    """Protobuf merges a field that comes twice."""
    data = onnx.ModelProto(graph=onnx.GraphProto(name="g")).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data + as_initializer(external("../x")).SerializeToString())
    with pytest.raises(BundleIntegrityError, match="does not list"):
        check_external_data(tmp_path / "model.onnx", LISTED)


@pytest.mark.parametrize("data", [b"", b"\x0b", b"\x3a\x05a", b"\x80" * 20, b"not an onnx file"])
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BundleIntegrityError, match="not an ONNX graph"):
        check_external_data(tmp_path / "model.onnx", LISTED)
    with pytest.raises(BundleIntegrityError, match="cannot be read"):
        check_external_data(tmp_path / "none.onnx", LISTED)


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data) & 127 | 128, len(data) >> 7]) + data

    graph = b""
    for _ in range(60):  # a graph in an attribute of a node of a graph; protobuf's own writer refuses it
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "model.onnx").write_bytes(field(7, graph))
    with pytest.raises(BundleIntegrityError, match="nested too deeply"):
        check_external_data(tmp_path / "model.onnx", LISTED)


@given(data=st.data())
def test_random_damage_never_escapes(
    bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray((bundle_of("sigmoid", "fp32") / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(raw)
    try:
        check_external_data(path, LISTED)
    except BundleIntegrityError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_bundle_whose_graph_asks_for_another_file_is_refused_before_an_engine_sees_it(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from command_line import edit_manifest

    model = onnx.load(own_bundle / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "secret.bin" if entry.key == "location" else entry.value
    (own_bundle / "model.onnx").write_bytes(model.SerializeToString())
    (own_bundle / "secret.bin").write_bytes((own_bundle / "model.onnx.data").read_bytes())
    entry = FileEntry(sha256_of(own_bundle / "model.onnx"), (own_bundle / "model.onnx").stat().st_size)
    edit_manifest(own_bundle, lambda fields: fields["files"].__setitem__("model.onnx", vars(entry)))
    monkeypatch.setattr("edge_prm.backends.onnx.session.open_session", lambda *_: pytest.fail("the engine saw it"))
    with pytest.raises(BundleIntegrityError, match=r"asks for the file 'secret\.bin'"):
        edge_prm.load(own_bundle)


def test_a_run_that_is_stopped_is_an_error_and_the_session_goes_on(bundle_of: Callable[..., Path]) -> None:
    import numpy as np

    from edge_prm.backends import load_model
    from edge_prm.bundle import open_bundle

    model: Any = load_model(open_bundle(bundle_of("sigmoid", "int8")), EngineOptions(1, "cpu"))
    ids = np.arange(200)
    expected = model.start().extend(ids, [199])[0]

    def terminated(session: Any, options: Any) -> None:
        options.terminate = True
        session.run_with_iobinding(session.io_binding(), options)

    with pytest.raises(BackendError, match="failed at token 0"):
        model._session.run(terminated, 0, 1)
    assert model.start().extend(ids, [199])[0] == expected
    model.close()


def test_a_session_takes_the_threads_it_is_given(bundle_of: Callable[..., Path]) -> None:
    session = open_session(bundle_of("sigmoid", "int8") / "model.onnx", EngineOptions(threads=1))
    assert session.get_session_options().intra_op_num_threads == 1
