"""What a device can run: each fact from a fake source, the choice from facts, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from command_line import run

from edge_prm import doctor, exit_codes
from edge_prm.backends.onnx import wheels
from edge_prm.backends.onnx.providers import CPU, CUDA, Placement
from edge_prm.cli.doctor import lines
from edge_prm.cli.main import main
from edge_prm.doctor import WORKS, Diagnosis, LlamaCpp, OnnxRuntime, System
from edge_prm.doctor_choices import CHOICES, choose, faults, notes
from edge_prm.errors import BackendError
from edge_prm.hardware import Gpu, Memory, Processor

ONNX = OnnxRuntime("1.32.0", wheels={"onnxruntime": "1.32.0"}, providers=(CPU,), saturates=False)
ON_CUDA = replace(ONNX, wheels={"onnxruntime-gpu": "1.31.1"}, providers=(CUDA, CPU), cuda=WORKS)
NO_LLAMA = LlamaCpp(None)
BASE = Diagnosis(
    System("0.1.0", "3.11.7", "Linux 6.1 x86_64", "ThinkPad", 4),
    Processor("Some CPU", ("AVX2",), 8, None), Memory(16.0, 12.0), (), OnnxRuntime(None), NO_LLAMA,
)  # fmt: skip
RTX = Gpu("NVIDIA GeForce RTX 3060", 12.0, 11.0, "8.6", "580.1")


def found(**changes: Any) -> Diagnosis:
    return replace(BASE, **changes)


def module(name: str, **members: Any) -> Callable[[str], ModuleType]:
    """An importer that knows one module."""

    def load(wanted: str) -> ModuleType:
        assert wanted == name
        made = ModuleType(name)
        vars(made).update(members)
        return made

    return load


def fails(error: Exception) -> Callable[[str], ModuleType]:
    def load(wanted: str) -> ModuleType:
        raise error

    return load


def cuda_works(placement: Placement) -> None:
    assert placement == Placement(CUDA, {"device_id": "0"}, "cuda", 0)


def cuda_fails(placement: Placement) -> None:
    raise BackendError("no kernels for this GPU")


@pytest.fixture
def one_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "wheels", lambda: {"onnxruntime-gpu": "1.31.1"})
    monkeypatch.setattr(doctor, "saturates", lambda: True)


# facts


def test_the_system_is_versions_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 3)
    monkeypatch.setattr(doctor.hardware, "machine", lambda: "board")
    system = doctor.system()
    assert (system.machine, system.usable_cores) == ("board", 3)
    assert system.python == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.usefixtures("one_wheel")
@pytest.mark.parametrize(
    ("providers", "try_cuda", "cuda"),
    [
        ((CPU,), cuda_works, None),
        ((CUDA, CPU), cuda_works, WORKS),
        ((CUDA, CPU), cuda_fails, "no kernels for this GPU"),
    ],
)
def test_onnx_runtime_is_described(providers: tuple[str, ...], try_cuda: Any, cuda: str | None) -> None:
    load = module("onnxruntime", __version__="1.31.1", get_available_providers=lambda: list(providers))
    assert doctor.onnxruntime(load, try_cuda) == OnnxRuntime(
        "1.31.1", None, {"onnxruntime-gpu": "1.31.1"}, None, providers, cuda, saturates=True
    )


def test_wheels_in_conflict_are_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "wheels", lambda: {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    load = module("onnxruntime", __version__="1.32.0", get_available_providers=lambda: [CPU])
    assert "overwrite each other's files" in (doctor.onnxruntime(load).conflict or "")


def test_llama_cpp_is_described() -> None:
    for gpu in (True, False):
        load = module("llama_cpp", __version__="0.3.36", llama_supports_gpu_offload=lambda gpu=gpu: gpu)
        assert doctor.llama_cpp(load) == LlamaCpp("0.3.36", None, gpu)


@pytest.mark.usefixtures("one_wheel")
def test_an_engine_that_is_missing_or_broken_is_a_fact() -> None:
    missing, broken = ModuleNotFoundError("no", name="llama_cpp"), OSError("libcudart.so.12: cannot open\n shared file")
    assert doctor.llama_cpp(fails(missing)) == LlamaCpp(None)
    assert doctor.llama_cpp(fails(broken)) == LlamaCpp(None, "libcudart.so.12: cannot open shared file")
    inner = ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers")
    assert doctor.onnxruntime(fails(inner)).error == "No module named 'flatbuffers'"
    assert doctor.onnxruntime(fails(ModuleNotFoundError("no", name="onnxruntime"))).error is None


# the choice


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        ({"onnxruntime": ON_CUDA, "gpus": (RTX,)}, "--fp16 --device cuda"),
        ({"onnxruntime": ON_CUDA, "gpus": (replace(RTX, free_gb=3.5),)}, "--int8 --device cuda"),
        ({"onnxruntime": ON_CUDA, "gpus": (replace(RTX, free_gb=2.2),)}, "--int4 --device cuda"),
        ({"onnxruntime": ON_CUDA, "gpus": (replace(RTX, free_gb=0.5),)}, "--int8"),
        ({"onnxruntime": ON_CUDA, "gpus": (Gpu("GPU of Jetson"),), "memory": Memory(7.9, 3.1)}, "--int8 --device cuda"),
        ({"onnxruntime": replace(ON_CUDA, cuda="no kernels"), "gpus": (RTX,)}, "--int8"),
        ({"onnxruntime": ONNX}, "--int8"),
        ({"onnxruntime": replace(ONNX, saturates=True)}, "--int8 --reduce-range"),
        ({"onnxruntime": replace(ONNX, saturates=None)}, "--int8"),
        ({"onnxruntime": ONNX, "memory": Memory(2.2, 1.9)}, "--int4"),
        ({"onnxruntime": ONNX, "memory": Memory(None, None)}, "--int8"),
        ({"onnxruntime": ONNX, "llama_cpp": LlamaCpp("0.3.36", None, True)}, "--gguf --int8"),
        ({"llama_cpp": LlamaCpp("0.3.36")}, "--gguf --int8"),
        ({"llama_cpp": LlamaCpp("0.3.36"), "memory": Memory(4.0, 2.0)}, "--gguf --int4"),
    ],
)  # fmt: skip
def test_the_bundle_that_fits_is_chosen(facts: dict[str, Any], options: str) -> None:
    choice = choose(found(**facts))
    assert choice is not None
    assert choice.options == options
    assert choice.export == f"edge-prm export CHECKPOINT {options} -o BUNDLE"
    assert ("--device cuda" in choice.check) == ("cuda" in options)


def test_a_device_without_an_engine_or_memory_has_no_choice_and_is_told_why() -> None:
    assert choose(BASE) is None
    assert 'pip install "edge-prm[cpu]"' in notes(BASE)[0]
    little = found(onnxruntime=ONNX, memory=Memory(1.0, 0.4))
    assert choose(little) is None
    assert "1.8 GB must be free, with --int4" in notes(little)[0]


def test_a_gpu_that_no_engine_uses_is_said() -> None:
    assert "RTX 3060 is not used by any engine here" in notes(found(onnxruntime=ONNX, gpus=(RTX,)))[0]
    assert notes(found(onnxruntime=ON_CUDA, gpus=(RTX,))) == []


def test_every_choice_is_one_that_export_and_check_take() -> None:
    commands = {"export": main.commands["export"], "check": main.commands["check"]}
    for choice in CHOICES:
        for line in (choice.export, choice.check):
            name, *arguments = line.split()[1:]
            command = commands[name]
            with click.Context(command) as context:
                command.parse_args(context, arguments)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.way} {choice.options}")
def test_every_choice_can_be_made(choice: Any) -> None:
    onnx = {"ONNX Runtime on CUDA": ON_CUDA, "ONNX Runtime": replace(ONNX, saturates=bool(choice.saturating))}
    llama = {"llama.cpp on a GPU": LlamaCpp("1", None, True), "llama.cpp": LlamaCpp("1")}
    facts = found(
        memory=Memory(16.0, choice.memory_gb),
        onnxruntime=onnx.get(choice.way, OnnxRuntime(None)),
        llama_cpp=llama.get(choice.way, NO_LLAMA),
    )
    assert choose(facts) == choice


def test_faults_are_what_is_installed_and_does_not_work() -> None:
    assert faults(BASE) == faults(found(onnxruntime=ON_CUDA)) == []
    wrong = replace(ON_CUDA, conflict="two wheels", cuda="no kernels", error="broken")
    said = faults(found(onnxruntime=wrong, llama_cpp=LlamaCpp(None, "no library")))
    assert [any(word in text for text in said) for word in ("two wheels", "no kernels", "broken", "no library")] == [
        True
    ] * 4


# the command


@pytest.fixture
def diagnosed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Diagnosis], None]:
    return lambda facts: monkeypatch.setattr(doctor, "diagnose", lambda: facts)


def test_the_command_prints_facts_and_the_choice(diagnosed: Callable[[Diagnosis], None]) -> None:
    diagnosed(found(onnxruntime=ON_CUDA, gpus=(RTX,)))
    result = run("doctor")
    assert result.exit_code == exit_codes.EXIT_OK
    for part in (
        "Some CPU (AVX2), 8 cores, 4 usable", "16 GB, 12 GB available", "do not saturate",
        "RTX 3060 (12 GB, 11 GB free, compute capability 8.6, driver 580.1)", "1.32.0 (onnxruntime-gpu 1.31.1)",
        "CUDA works", "llama.cpp  not installed", "edge-prm export CHECKPOINT --fp16 --device cuda -o BUNDLE",
    ):  # fmt: skip
        assert part in result.stdout


def test_a_fault_is_exit_code_1_and_a_missing_engine_is_none(diagnosed: Callable[[Diagnosis], None]) -> None:
    diagnosed(BASE)
    assert run("doctor").exit_code == exit_codes.EXIT_OK
    diagnosed(found(onnxruntime=replace(ON_CUDA, cuda="no kernels")))
    result = run("doctor")
    assert result.exit_code == exit_codes.EXIT_SOME_FAILED
    assert "Fault: CUDA does not work: no kernels" in result.stdout
    assert "CUDA does not work" in lines(found(onnxruntime=replace(ON_CUDA, cuda="x")))["ONNX Runtime"]


def test_the_command_s_json_has_all_facts(diagnosed: Callable[[Diagnosis], None]) -> None:
    diagnosed(found(onnxruntime=ON_CUDA, gpus=(RTX,)))
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["gpus"][0]["name"] == RTX.name
    assert facts["onnxruntime"]["providers"] == [CUDA, CPU]
    assert facts["choice"]["export"].startswith("edge-prm export CHECKPOINT --fp16")
    assert (facts["faults"], facts["notes"]) == ([], [])
    diagnosed(BASE)
    assert json.loads(run("doctor", "--json").stdout)["choice"] is None


def test_an_install_without_engines_can_ask_the_doctor(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules.update(onnxruntime=None, llama_cpp=None, tokenizers=None)\n"
        "from edge_prm.cli.main import main\nmain(['doctor', '--json'])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    facts = json.loads(done.stdout)
    assert facts["onnxruntime"]["version"] is facts["llama_cpp"]["version"] is None
    assert "Traceback" not in done.stderr


def test_the_real_device_is_diagnosed() -> None:
    facts = doctor.diagnose()
    assert facts.system.usable_cores >= 1
    assert facts.processor.cores >= 1
    assert json.loads(json.dumps(facts.as_dict()))["system"]["machine"] == facts.system.machine
