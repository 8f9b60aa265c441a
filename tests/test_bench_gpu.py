"""`bench` on a GPU, without one: cards of a fake driver, limits of the CPU's own provider, a model that names a card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench_runs import needs
from fake_nvml import FakeCard, FakeNvml, nowhere

from edge_prm.errors import InputError
from edge_prm.hardware import Gpu
from edge_prm.manifest import Manifest
from edge_prm.prm import PRM
from edge_prm.recipe import RECIPES
from edge_prm_bench.engine import Engine, device_of
from edge_prm_bench.speed import gemm, memory, nvml
from edge_prm_bench.speed.nvml import CardFacts, find_card

FIRST, SECOND = FakeCard(bus_id="00000000:01:00.0"), FakeCard("NVIDIA Fake 2", bus_id="00000000:02:00.0")
INFO = "MemTotal:        7802928 kB\nMemFree:          500000 kB\nMemAvailable:    6802928 kB\n"


def test_a_card_is_described_by_its_driver() -> None:
    card = find_card(FakeNvml(FIRST), "cuda:0", nowhere)
    assert card is not None
    assert card.facts() == CardFacts("NVIDIA Fake 1", 8.0, "600.1", "13.1")
    assert (card.used_bytes(), card.millijoules()) == (1_000_000_000, 1)


@pytest.mark.parametrize(("device", "name"), [("cuda:0", "NVIDIA Fake 2"), ("cuda:1", "NVIDIA Fake 1"), ("gpu", None)])
def test_cards_are_told_apart_by_their_place_on_the_bus(device: str, name: str | None) -> None:
    """CUDA counts the faster card first, here the second on the bus; `gpu` does not say which of two it is."""
    places = [SECOND.bus_id, FIRST.bus_id]
    card = find_card(FakeNvml(FIRST, SECOND), device, lambda index: places[index])
    assert (None if card is None else card.facts().name) == name


def test_of_several_cards_none_is_guessed_without_the_driver_of_cuda() -> None:
    assert find_card(FakeNvml(FIRST, SECOND), "cuda:0", nowhere) is None
    assert find_card(FakeNvml(FIRST, SECOND), "cuda:0", lambda index: "00000000:09:00.0") is None


def test_a_jetson_reports_neither_memory_nor_energy() -> None:
    card = find_card(FakeNvml(FakeCard("Orin (nvgpu)", used=None, energy=None)), "cuda:0", nowhere)
    assert card is not None
    assert card.facts() == CardFacts("Orin (nvgpu)", None, "600.1", "13.1")
    assert card.used_bytes() is None
    zeros = find_card(FakeNvml(FakeCard(used=0, total=0, energy=0)), "cuda:0", nowhere)
    assert zeros is not None
    assert (zeros.used_bytes(), zeros.millijoules()) == (None, None)


def test_a_cpu_has_no_card_and_no_memory_of_its_own() -> None:
    assert nvml.card_of("cpu") is None
    assert memory.reader_of("cpu") is None
    assert memory.added_gb(None, None) is None


def test_memory_of_a_card_is_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    used = FakeCard()
    monkeypatch.setattr(memory, "card_of", lambda device: find_card(FakeNvml(used), device, nowhere))
    reader = memory.reader_of("cuda:0")
    assert reader is not None
    before = reader()
    used.used = 4_500_000_000
    assert memory.added_gb(reader, before) == pytest.approx(3.5)


@pytest.mark.parametrize(("model", "known"), [("NVIDIA Jetson Orin Nano\0", True), ("Raspberry Pi 5", False)])
def test_the_gpu_of_a_jetson_takes_memory_of_the_board(tmp_path: Path, model: str, known: bool) -> None:
    board, info = tmp_path / "model", tmp_path / "meminfo"
    board.write_text(model)
    info.write_text(INFO)
    reader = memory.reader_of("cuda:0", board, info)
    assert (reader is not None and reader()) == (1_000_000 * 1024 if known else False)


def test_memory_that_the_system_does_not_report_is_not_known() -> None:
    assert memory.system_bytes("MemTotal:  5 kB\n") is None


def test_a_bundle_says_which_card_it_runs_on(prm: PRM) -> None:
    assert device_of(prm) == "cpu"
    prm.model.device = "cuda:1"  # type: ignore[attr-defined]
    assert device_of(prm) == "cuda:1"


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_an_onnx_bundle_on_the_cpu_says_so(bundle_of: object, recipe: str) -> None:
    with Engine(1, "cpu").load(bundle_of("sigmoid", recipe)) as opened:  # type: ignore[operator]
        assert device_of(opened) == "cpu"


def test_a_provider_is_an_option_of_load_only_where_one_is_asked_for() -> None:
    assert "provider" not in Engine(2, "cuda:1").keywords()
    assert Engine(provider="coreml").keywords()["provider"] == "coreml"
    assert (Engine(2, "cuda:1").options().device, Engine(provider="coreml").options().provider) == ("cuda:1", "coreml")


def test_a_reference_bundle_of_cpus_is_not_put_on_a_card(manifest_for: object) -> None:
    manifest: Manifest = manifest_for()  # type: ignore[operator]
    engine = Engine(2, "cuda:1")
    assert engine.for_reference(manifest) == Engine(2, "auto")
    assert engine.for_reference(replace(manifest, recipe=RECIPES["onnx", "fp16"])) == engine


def test_a_limit_is_of_the_kind_of_the_recipe_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(gemm, "fp16_gemm_gops", lambda device, threads: asked.append(device) or 7.0)
    limits = gemm.Limits(int8=5.0)
    on_card = [limits.of(RECIPES["onnx", name], "cuda:0") for name in ("fp16", "w8a16", "w4a16", "fp16")]
    assert on_card == [gemm.Limit("fp16", "cuda:0", 7.0)] * 4
    assert limits.of(RECIPES["onnx", "int8"], "cpu") == gemm.Limit("int8", "cpu", 5.0)
    assert asked == ["cuda:0"]


@pytest.mark.parametrize(
    ("engine", "recipe", "device"),
    [("gguf", "f16", "cpu"), ("onnx", "int4", "cpu"), ("onnx", "fp16", "DmlExecutionProvider")],
)
def test_what_has_no_measured_limit_has_none(engine: str, recipe: str, device: str) -> None:
    assert gemm.Limits(5.0).of(RECIPES[engine, recipe], device) is None


def test_the_fp16_limit_is_measured_by_the_provider_of_the_device() -> None:
    needs("onnxruntime", "onnx")
    assert gemm.fp16_gemm_gops("cpu", threads=1, repeats=1) > 0
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(InputError, match="CUDAExecutionProvider"):
            gemm.fp16_gemm_gops("cuda:0")


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ((Gpu("Orin", None, None, "8.7", "540"),), CardFacts("Orin", None, "540", None)),
        ((Gpu("a"), Gpu("b")), None),
        ((), None),
    ],
)
def test_without_nvidia_ml_py_the_only_card_still_has_a_name(
    monkeypatch: pytest.MonkeyPatch, cards: tuple[Gpu, ...], expected: CardFacts | None
) -> None:
    monkeypatch.setattr(nvml, "card_of", lambda device: None)
    monkeypatch.setattr(nvml, "gpus", lambda: cards)
    assert nvml.facts_of("cuda:0") == expected
    assert nvml.facts_of("cpu") is None
