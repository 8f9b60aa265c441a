"""Where llama.cpp runs a GGUF bundle: the device that was asked for, or an error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import need_engine

import edge_prm
from edge_prm.backends import guest
from edge_prm.backends.gguf.llama_cpp import gpu_layers_of, offload_of, reason
from edge_prm.errors import InputError

need_engine("gguf")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "runs on the CPU only"),
        ({"gpu_layers": 3}, "runs on the CPU only"),
        ({"gpu_layers": 3, "device": "cpu"}, "gpu_layers is 3 and device is 'cpu'"),
        ({"gpu_layers": 0, "device": "gpu"}, "gpu_layers is 0 and device is 'gpu'"),
        ({"gpu_layers": 0, "device": "cuda:1"}, "gpu_layers is 0 and device is 'cuda:1'"),
        ({"device": "cuda"}, "runs on the CPU only"),
        ({"device": "cuda:1"}, "runs on the CPU only"),
        ({"gpu_layers": -1}, "gpu_layers is -1"),
        ({"gpu_layers": 1.5}, "gpu_layers is 1.5"),
    ],
)
def test_a_gpu_that_is_not_there_is_named(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, options: dict, said: str
) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(InputError, match=said):
        edge_prm.load(bundle_of("sigmoid", "q8_0"), **options)


def test_a_fallback_to_the_cpu_is_logged_once(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    monkeypatch.setattr(guest, "_logged", set())
    with caplog.at_level(logging.INFO, "edge_prm"):
        for device in ("cpu", "auto", "auto"):
            edge_prm.load(bundle_of("sigmoid", "q8_0"), device=device).close()
    (record,) = caplog.records
    assert record.name == "edge_prm"
    assert "device auto" in record.getMessage()
    assert "running on the CPU" in record.getMessage()


def test_layers_go_to_a_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    assert gpu_layers_of(llama_cpp, "auto", None, 28) == 29
    assert gpu_layers_of(llama_cpp, "gpu", 7, 28) == 7
    assert gpu_layers_of(llama_cpp, "cuda", 7, 28) == gpu_layers_of(llama_cpp, "cuda:1", 7, 28) == 7
    assert gpu_layers_of(llama_cpp, "cpu", None, 28) == 0


@pytest.mark.parametrize(
    ("device", "gpu_layers", "named", "card"),
    [
        ("cuda:1", None, "cuda:1", 1), ("cuda:0", None, "cuda:0", 0), ("cuda", None, "gpu", None),
        ("gpu", None, "gpu", None), ("auto", None, "gpu", None), ("auto", 0, "cpu", None), ("cpu", None, "cpu", None),
    ],
)  # fmt: skip
def test_a_card_holds_all_layers_alone_and_a_gpu_without_number_is_llama_cpp_s_choice(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu_layers: int | None, named: str, card: int | None
) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    offload, options = offload_of(llama_cpp, device, gpu_layers, 28), llama_cpp.llama_model_default_params()
    usual = (options.split_mode, options.main_gpu)
    offload.set(llama_cpp, options)
    assert offload.device == named
    assert options.n_gpu_layers == (0 if named == "cpu" else 29)
    alone = (llama_cpp.LLAMA_SPLIT_MODE_NONE, card)
    assert (options.split_mode, options.main_gpu) == (usual if card is None else alone)


def test_a_card_that_is_not_there_is_the_engine_s_reason() -> None:
    lines = ["load: loaded meta data", "load: invalid value for main_gpu: 7 (available devices: 1)", ""]
    assert reason(lines) == lines[1]
