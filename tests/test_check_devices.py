"""`check` on devices: the tolerance that the recipe has there, and failures of a GPU that have a remedy of their own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import ROW, edit_manifest, refused, run

from edge_prm.backends import EngineOptions
from edge_prm.backends.onnx.failures import failed
from edge_prm.backends.onnx.native import OnnxModel
from edge_prm.bundle import open_bundle
from edge_prm.check import check_bundle
from edge_prm.errors import BackendError, DeviceMemoryError, MissingKernelsError
from edge_prm.manifest import Fidelity, Golden, Manifest
from edge_prm.prm import load
from edge_prm.recipe import RECIPES, Tolerances
from edge_prm.session import Session

pytest.importorskip("onnxruntime", reason='this needs the engine: pip install "edge-prm[cpu]"')

# the tolerance of a device


def test_a_tolerance_of_the_cpu_is_that_of_the_cpu_alone() -> None:
    tolerances = Tolerances(0.03, 0.02, incremental_cpu=0.0)
    assert {device: tolerances.incremental_on(device) for device in ("cpu", "cuda:0", "DmlExecutionProvider")} == {
        "cpu": 0.0, "cuda:0": 0.02, "DmlExecutionProvider": 0.02,
    }  # fmt: skip
    assert Tolerances(0.03, 0.02).incremental_on("cpu") == 0.02


@pytest.mark.parametrize("key", RECIPES, ids="-".join)
def test_every_recipe_states_its_tolerance_on_each_of_its_devices(key: tuple[str, str]) -> None:
    """ONNX bundles of the native exporter have equal bits on a CPU, whatever else they run on."""
    recipe = RECIPES[key]
    bounds = {device: recipe.tolerances.incremental_on(device) for device in recipe.devices}
    assert max(bounds.values()) == recipe.tolerances.incremental
    assert (bounds["cpu"] == 0) == (recipe.engine == "onnx")
    assert all(bounds[device] > 0 for device in recipe.devices if device != "cpu")


@pytest.mark.parametrize("recipe", ["fp16", "w8a16", "w4a16", "int4"])
def test_check_finds_equal_bits_on_the_cpu_and_asks_for_them(demo_of: Callable[[str], Path], recipe: str) -> None:
    result = run("check", demo_of(recipe), "--device", "cpu", "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["tolerance"]) == (0, RECIPES["onnx", recipe].tolerances.full_precision)
    assert (facts["device"], facts["incremental_difference"], facts["incremental_tolerance"]) == ("cpu", 0, 0)
    assert "the same bits step by step" in facts["sentence"]


@pytest.mark.parametrize(("device", "verdict", "limit"), [("cpu", "device", 0.0), ("cuda:0", "trusted", 0.02)])
def test_a_difference_step_by_step_is_judged_by_the_device_it_was_measured_on(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, device: str, verdict: str, limit: float
) -> None:
    plain = Session.rewards.fget
    monkeypatch.setattr(Session, "rewards", property(lambda self: tuple(r + 0.01 for r in plain(self))))
    monkeypatch.setattr(OnnxModel, "device", property(lambda self: device))
    found = check_bundle(open_bundle(bundle_of("sigmoid", "fp16")), EngineOptions(device="cpu"))
    assert (found.verdict, found.incremental_tolerance, found.device) == (verdict, limit, device)
    assert ("cuda:0" in found.sentence) == (device == "cuda:0")


# manifests


def complete(manifest: Manifest, recipe: Any) -> Manifest:
    golden = Golden("Q", ("a",), "0" * 64, (0.5,), (0.5,))
    fidelity = Fidelity("numpy fp32", 1, 0.0, 0.0, 0.02, 0.02)
    return replace(
        manifest, recipe=recipe, validation=replace(manifest.validation, golden=(golden,), fidelity=fidelity)
    )


def test_a_manifest_keeps_the_tolerance_of_each_device(manifest_for: Callable[..., Manifest]) -> None:
    manifest = complete(manifest_for(), RECIPES["onnx", "fp16"])
    again = Manifest.from_json(manifest.to_json(), "here")
    assert again == manifest
    assert again.recipe.tolerances.incremental_on("cpu") == 0.0


def test_a_manifest_without_a_tolerance_of_the_cpu_has_one_for_all_devices(
    manifest_for: Callable[..., Manifest],
) -> None:
    fields = json.loads(complete(manifest_for(), RECIPES["optimum", "int8"]).to_json())
    del fields["recipe"]["tolerances"]["incremental_cpu"]
    tolerances = Manifest.from_json(json.dumps(fields), "here").recipe.tolerances
    assert tolerances == RECIPES["optimum", "int8"].tolerances
    assert tolerances.incremental_on("cpu") == tolerances.incremental_on("cuda:0") == 0.02


def test_the_tolerance_that_an_export_wrote_counts_where_the_recipe_has_none_for_the_device(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_manifest(own_bundle, lambda fields: fields["fidelity"].update(incremental_tolerance=0.05))
    plain = Session.rewards.fget
    monkeypatch.setattr(Session, "rewards", property(lambda self: tuple(r + 0.04 for r in plain(self))))
    facts = json.loads(run("check", own_bundle, "--json").stdout)
    assert (facts["verdict"], facts["incremental_tolerance"]) == ("trusted", 0.05)


def test_other_tolerances_of_a_recipe_keep_that_of_the_cpu() -> None:
    changed = RECIPES["onnx", "fp16"].with_tolerances(0.5, 0.1)
    assert changed.tolerances == Tolerances(0.5, 0.1, 0.0)


# failures of a GPU

NO_KERNEL = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running GatherBlockQuantized node. "
    "Name:'embedding' Status Message: CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for "
    "execution on the device"
)
NO_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMulNBits node. "
    "Name:'layer.0.qkv' Status Message: /core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 939"
)
FAILURES = {
    NO_KERNEL: (MissingKernelsError, "no kernels for this GPU's compute capability (8.7, sm_87, of a Jetson Orin)"),
    "CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ;": (MissingKernelsError, "sm_87"),
    "CUBLAS failure 8: CUBLAS_STATUS_ARCH_MISMATCH ; GPU=0": (MissingKernelsError, "sm_87"),
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version": (MissingKernelsError, "update the driver"),
    "CUDA failure 222: the provided PTX was compiled with an unsupported toolchain.": (MissingKernelsError, "update the driver"),
    NO_MEMORY: (DeviceMemoryError, "too little free memory; close sessions"),
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=orin": (DeviceMemoryError, "--int8 or --int4"),
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED": (DeviceMemoryError, "too little free memory"),
    "std::bad_alloc": (DeviceMemoryError, "too little free memory"),
    "CUDA failure 101: invalid device ordinal ; GPU=7": (BackendError, "`edge-prm doctor` lists those that are there"),
    "CUDA failure 700: an illegal memory access was encountered": (BackendError, "illegal memory access"),
    "CUDA failure 217: peer access is not supported between these two devices": (BackendError, "peer access"),
}  # fmt: skip


@pytest.mark.parametrize("message", FAILURES)
def test_a_failure_is_the_error_of_its_cause_with_its_remedy(message: str) -> None:
    kind, said = FAILURES[message]
    error = failed("ONNX Runtime failed at token 3", RuntimeError(message))
    assert type(error) is kind
    assert str(error).startswith("ONNX Runtime failed at token 3: ")
    assert said in str(error)
    assert message in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


def test_a_failure_without_words_has_its_name() -> None:
    assert str(failed("it failed", KeyError())) == "it failed: KeyError"
    assert type(failed("it failed", MemoryError())) is DeviceMemoryError


@pytest.fixture
def runs_fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make every run of ONNX Runtime fail with its own exception."""

    def make(message: str) -> None:
        from onnxruntime import InferenceSession
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail

        def run(*_: object) -> None:
            raise Fail(message)

        monkeypatch.setattr(InferenceSession, "run_with_iobinding", run)

    return make


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (NO_KERNEL, "this build of ONNX Runtime has no kernels for this GPU's compute capability"),
        (NO_MEMORY, "the device has too little free memory"),
        ("CUDA failure 700: an illegal memory access was encountered", "ONNX Runtime failed at token 0: CUDA failure 700"),
    ],
)  # fmt: skip
def test_check_tells_a_gpu_without_kernels_from_one_without_memory(
    bundle_of: Callable[..., Path], runs_fail: Callable[[str], None], message: str, said: str
) -> None:
    folder = bundle_of("sigmoid", "w8a16")
    runs_fail(message)
    result = run("check", folder, "--device", "cpu", "--json")
    refused(result, said)
    assert ("no kernels" in result.stderr) == (message == NO_KERNEL)
    assert ("too little free memory" in result.stderr) == (message == NO_MEMORY)


def test_a_row_that_finds_no_memory_costs_only_itself(
    bundle_of: Callable[..., Path], rows: Callable[..., Path], runs_fail: Callable[[str], None]
) -> None:
    folder = bundle_of("sigmoid", "fp16")
    runs_fail(NO_MEMORY)
    result = run("score", folder, rows(ROW), "--device", "cpu")
    assert result.exit_code == 1
    assert "too little free memory" in result.stderr


def test_a_weight_file_that_finds_no_memory_says_so(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoMemory:
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("Exception during initialization: " + NO_MEMORY)

    folder = bundle_of("sigmoid", "fp16")
    monkeypatch.setattr("onnxruntime.InferenceSession", NoMemory)
    with pytest.raises(DeviceMemoryError, match=r"cannot load .*too little free memory"):
        load(folder, device="cpu")
