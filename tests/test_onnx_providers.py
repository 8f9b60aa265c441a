"""Where ONNX Runtime runs a bundle: the device that was asked for, or an error; never another one silently."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ROW, refused, run

import edge_prm
from edge_prm.backends import EngineOptions, guest, load_model
from edge_prm.backends.onnx import providers, wheels
from edge_prm.backends.onnx.providers import CPU, CUDA, Placement, check_placed, place
from edge_prm.backends.options import DEVICES
from edge_prm.bundle import Bundle
from edge_prm.errors import BackendError, InputError
from edge_prm.manifest import Manifest
from edge_prm.notices import SlowDeviceWarning
from edge_prm.recipe import RECIPES

pytest.importorskip("onnxruntime", reason='this needs the engine: pip install "edge-prm[cpu]"')

ManifestFor = Callable[..., Manifest]


@pytest.fixture
def of_recipe(manifest_for: ManifestFor) -> Callable[[str], Bundle]:
    return lambda name: Bundle(Path("some-bundle"), manifest_for(recipe=RECIPES["onnx", name]))


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make ONNX Runtime have these providers."""

    def make(*names: str) -> None:
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(names))

    return make


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let distributions that provide the module `onnxruntime`, and others, be the only ones that are installed."""

    def make(**versions: str) -> None:
        for name, version in versions.items():
            module = "onnxruntime_extensions" if name.endswith("extensions") else "onnxruntime"
            info = tmp_path / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            )
            (info / "RECORD").write_text(f"{module}/__init__.py,,\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return make


# device and provider


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device": "cpu"}, Placement()),
        ({"device": "auto"}, Placement(CUDA, {"device_id": "0"}, "cuda", 0)),
        ({"device": "gpu"}, Placement(CUDA, {"device_id": "0"}, "cuda", 0)),
        ({"device": "cuda"}, Placement(CUDA, {"device_id": "0"}, "cuda", 0)),
        ({"device": "cuda:1"}, Placement(CUDA, {"device_id": "1"}, "cuda", 1)),
        (
            {"device": "cuda", "options": {"provider.device_id": 2, "provider.gpu_mem_limit": 1 << 30}},
            Placement(CUDA, {"device_id": "2", "gpu_mem_limit": "1073741824"}, "cuda", 2),
        ),
        ({"provider": "cuda", "options": {"provider.device_id": 1}}, Placement(CUDA, {"device_id": "1"}, "cuda", 1)),
        ({"provider": "CPU"}, Placement()),
        ({"provider": "CoreML"}, Placement("CoreMLExecutionProvider")),
        ({"provider": "coremlexecutionprovider"}, Placement("CoreMLExecutionProvider")),
        (
            {"provider": "openvino", "options": {"provider.device_type": "NPU"}},
            Placement("OpenVINOExecutionProvider", {"device_type": "NPU"}),
        ),
    ],
)
def test_options_are_a_placement(
    of_recipe: Callable[[str], Bundle], has: Callable[..., None], options: dict[str, Any], expected: Placement
) -> None:
    has(CUDA, "CoreMLExecutionProvider", "OpenVINOExecutionProvider", CPU)
    assert place(EngineOptions(**options).checked(), of_recipe("fp16")) == expected


@pytest.mark.parametrize(
    ("placement", "device"),
    [
        (Placement(), "cpu"),
        (Placement(CUDA, {}, "cuda", 1), "cuda:1"),
        (Placement("DmlExecutionProvider"), "DmlExecutionProvider"),
    ],
)
def test_a_placement_has_the_name_of_its_device(placement: Placement, device: str) -> None:
    assert placement.device == device
    assert placement.providers[-1] == (CPU if device != "cpu" else (CPU, {}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda:1", "options": {"provider.device_id": 0}}, "device is 'cuda:1' and provider.device_id is 0"),
        ({"device": "cuda", "options": {"provider.device_id": "one"}}, "provider.device_id is 'one'; give the number"),
        ({"device": "cpu", "options": {"provider.device_id": 0}}, "and the CPU, which runs this bundle, has none"),
        ({"provider": "directml"}, "ONNX Runtime has no DmlExecutionProvider; it has CUDAExecutionProvider, CPU"),
        ({"provider": "Quantum"}, "ONNX Runtime has no Quantum; it has CUDAExecutionProvider, CPU"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    of_recipe: Callable[[str], Bundle], has: Callable[..., None], options: dict[str, Any], said: str
) -> None:
    has(CUDA, CPU)
    with pytest.raises(InputError) as caught:
        place(EngineOptions(**options).checked(), of_recipe("fp16"))
    assert said in str(caught.value)


def test_every_device_of_the_options_is_placed(of_recipe: Callable[[str], Bundle], has: Callable[..., None]) -> None:
    has(CUDA, CPU)
    found = {device: place(EngineOptions(device=device), of_recipe("fp16")).device for device in DEVICES}
    assert found == {"auto": "cuda:0", "cpu": "cpu", "gpu": "cuda:0", "cuda": "cuda:0"}


# device auto


def test_auto_runs_a_recipe_for_cpus_on_the_cpu_and_logs_it(
    of_recipe: Callable[[str], Bundle], has: Callable[..., None], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    has(CUDA, CPU)
    monkeypatch.setattr(guest, "_logged", set())
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "edge_prm"):
        warnings.simplefilter("error")
        assert place(EngineOptions(), of_recipe("int8")) == Placement()
    assert "device auto" in caplog.text


def test_auto_warns_where_a_recipe_for_gpus_runs_on_the_cpu(
    of_recipe: Callable[[str], Bundle], has: Callable[..., None]
) -> None:
    has(CPU)
    with pytest.warns(SlowDeviceWarning) as caught:
        assert place(EngineOptions(), of_recipe("w8a16")) == Placement()
    said = str(caught[0].message)
    for part in ("some-bundle", "recipe w8a16 is for GPUs", f"has no {CUDA}", "installed: onnxruntime ", "--int8"):
        assert part in said


def test_a_cpu_that_was_asked_for_is_no_reason_to_warn(
    of_recipe: Callable[[str], Bundle], has: Callable[..., None]
) -> None:
    has(CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert place(EngineOptions(device="cpu"), of_recipe("fp16")) == Placement()


def test_the_command_line_says_in_a_line_that_a_bundle_for_gpus_is_slow(
    bundle_of: Callable[..., Path], rows: Callable[..., Path]
) -> None:
    if CUDA in providers.available():
        pytest.skip("here auto is CUDA")
    folder, file = bundle_of("sigmoid", "fp16"), rows(ROW)
    lines = [line for line in run("score", folder, file).stderr.splitlines() if line.startswith("Warning")]
    assert len(lines) == 1
    assert "recipe fp16 is for GPUs" in lines[0]
    assert "Warning" not in run("score", folder, file, "--device", "cpu").stderr


# the command line


def test_a_device_that_is_none_is_a_usage_error_before_the_bundle_is_read(rows: Callable[..., Path]) -> None:
    for command in (["check", "nowhere"], ["score", "nowhere", rows(ROW)], ["bench", "nowhere"]):
        result = run(*command, "--device", "cuda:x")
        assert result.exit_code == 2
        assert "device 'cuda:x' is not one of auto, cpu, gpu, cuda" in result.stderr
        assert "nowhere" not in result.stderr.splitlines()[-1]


def test_cuda_where_there_is_none_is_refused_with_the_wheel_to_install(
    bundle_of: Callable[..., Path], rows: Callable[..., Path], has: Callable[..., None]
) -> None:
    has("AzureExecutionProvider", CPU)
    folder = bundle_of("sigmoid", "fp16")
    for command in (["check", folder], ["score", folder, rows(ROW)], ["rank", folder, rows(ROW)]):
        result = run(*command, "--device", "cuda:1")
        refused(result, f"ONNX Runtime has no {CUDA}", f"it has AzureExecutionProvider, {CPU}", "onnxruntime-gpu")


def test_a_provider_that_is_not_there_is_refused_with_the_list(bundle: Path) -> None:
    result = run("check", bundle, "--provider", "directml")
    refused(result, "ONNX Runtime has no DmlExecutionProvider", CPU, "pip install onnxruntime-directml")


def test_a_provider_for_a_gguf_bundle_is_refused(tmp_path: Path, manifest_for: ManifestFor) -> None:
    manifest = manifest_for(recipe=RECIPES["gguf", "q8_0"])
    with pytest.raises(InputError, match="is a GGUF bundle, and providers are ONNX Runtime's"):
        load_model(Bundle(tmp_path, manifest), EngineOptions(provider="cuda"))


# what ONNX Runtime made of it


class Session:
    """What check_placed asks of an InferenceSession."""

    def __init__(self, *names: str, **nodes: int) -> None:
        self._names, self._nodes = names, nodes

    def get_providers(self) -> list[str]:
        return list(self._names)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        class Part:
            def __init__(self, name: str, count: int) -> None:
                self.ep_name, self._count = name, count

            def get_nodes(self) -> list[int]:
                return [0] * self._count

        if not self._nodes:
            raise RuntimeError("nothing was recorded")
        return [Part(name, count) for name, count in self._nodes.items()]


def test_a_provider_that_did_not_start_is_an_error() -> None:
    with pytest.raises(
        BackendError, match=r"cannot start CUDAExecutionProvider: .*CUDA and cuDNN.* do not load"
    ) as caught:
        check_placed(Session(CPU), Placement(CUDA, {}, "cuda"))
    assert "installed: onnxruntime" in str(caught.value)


def test_a_provider_that_takes_no_node_is_an_error() -> None:
    with pytest.raises(BackendError, match="DmlExecutionProvider takes none of the graph's 7 nodes"):
        check_placed(Session("DmlExecutionProvider", CPU, **{CPU: 7}), Placement("DmlExecutionProvider"))


def test_how_many_nodes_a_provider_takes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edge_prm"):
        check_placed(Session(CUDA, CPU, **{CUDA: 70, CPU: 3}), Placement(CUDA, {}, "cuda"))
    assert f"{CUDA} runs 70 of 73 nodes" in caplog.text


def test_a_version_that_does_not_tell_about_nodes_is_trusted() -> None:
    check_placed(Session(CUDA, CPU), Placement(CUDA, {}, "cuda"))
    assert providers._nodes_of_providers(object()) == Counter()


def test_a_provider_of_the_installed_wheel_that_runs_nothing_is_found(bundle_of: Callable[..., Path]) -> None:
    """The wheel for CPUs has one: Azure's takes calls to a service, and no node of a model."""
    import onnxruntime

    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this version of ONNX Runtime does not tell which provider has a node")
    if "AzureExecutionProvider" not in providers.available():
        pytest.skip("this wheel has no such provider")
    with pytest.raises(BackendError, match="AzureExecutionProvider takes none of the graph's"):
        edge_prm.load(bundle_of("sigmoid", "fp16"), provider="azureexecutionprovider")


@pytest.mark.parametrize(("provider", "loads"), [(CUDA, True), ("TensorrtExecutionProvider", True), (CPU, False)])
def test_libraries_of_cuda_are_looked_for_in_packages_too_and_what_is_missing_is_no_word_on_stdout(
    provider: str, loads: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: print("Failed to load libcudnn.so.9"), raising=False)
    monkeypatch.setattr("onnxruntime.InferenceSession", object)
    providers._load_cuda_libraries.cache_clear()
    for _ in range(2):
        with pytest.raises(TypeError):  # the class in the engine's place takes no graph
            providers.new_session(b"", None, Placement(provider))
    providers._load_cuda_libraries.cache_clear()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Failed to load libcudnn.so.9\n" if loads else "")


def test_a_failure_of_the_provider_is_an_error_and_no_word_on_stdout(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By itself the engine prints the failure on stdout, and takes the CPU."""
    from onnxruntime.capi import onnxruntime_inference_collection as collection

    monkeypatch.setattr(providers, "available", lambda: [CUDA, CPU])
    begin = collection.InferenceSession._create_inference_session

    def fails(self: Any, names: Any, *rest: Any) -> None:
        if any(CUDA in name for name in names):
            raise RuntimeError("CUDA failure 101: invalid device ordinal ; GPU=7")
        begin(self, names, *rest)

    monkeypatch.setattr(collection.InferenceSession, "_create_inference_session", fails)
    folder = bundle_of("sigmoid", "fp16")
    capfd.readouterr()
    with pytest.raises(BackendError, match="there is no GPU of that number"):
        edge_prm.load(folder, device="cuda:7")
    assert capfd.readouterr().out == ""


# wheels


def test_one_wheel_is_named_with_its_version(install: Callable[..., None]) -> None:
    install(onnxruntime_gpu="1.31.1", onnxruntime_extensions="0.14")
    assert wheels.wheels() == {"onnxruntime-gpu": "1.31.1"}
    assert wheels.conflict() is None
    assert wheels.installed() == "installed: onnxruntime-gpu 1.31.1"
    assert wheels.replaced_by("onnxruntime-gpu") == "pip install onnxruntime-gpu"


def test_two_wheels_are_found_and_explained(install: Callable[..., None]) -> None:
    install(onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    said = wheels.conflict() or ""
    assert "onnxruntime and onnxruntime-gpu are one module" in said
    assert "overwrite each other's files" in said
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in said
    assert said in wheels.installed()


def test_two_wheels_are_the_reason_that_is_given_for_a_missing_provider(
    install: Callable[..., None], has: Callable[..., None], of_recipe: Callable[[str], Bundle]
) -> None:
    has(CPU)
    install(onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    with pytest.raises(InputError) as caught:
        place(EngineOptions(device="cuda"), of_recipe("fp16"))
    assert str(caught.value).count("pip uninstall") == 1
    assert "overwrite each other's files" in str(caught.value)


def test_a_module_of_no_wheel_is_no_conflict(install: Callable[..., None]) -> None:
    install()
    assert wheels.wheels() == {}
    assert wheels.installed() == "installed: no wheel that pip knows"
