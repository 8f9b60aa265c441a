"""GGUF bundles on llama.cpp: rewards of the checkpoint, shared cells, no word on stderr, nothing that ends the process."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import need_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import PROMPT, STEPS, torch_rewards
from tiny import opened, write_checkpoint
from trajectories import run_threads

import edge_prm
from edge_prm.backends import Backend, EngineOptions, Model, guest, load_model
from edge_prm.backends.gguf import sequences as limits
from edge_prm.backends.gguf.context import Context
from edge_prm.backends.gguf.llama_cpp import StopFlag, gpu_layers_of, offload_of, reason
from edge_prm.bundle import open_bundle
from edge_prm.encode import Encoder
from edge_prm.errors import BackendError, BundleError, InputError, OutputExistsError
from edge_prm.manifest import read_manifest
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.head import read_head
from edge_prm_export.decoder.reference import ReferenceRun

need_engine("gguf")
from edge_prm_export import export  # noqa: E402

TOLERANCES = {"f32": 5e-3, "f16": 1e-2, "q8_0": 0.05, "q5_0": 0.25}
IDS = np.random.default_rng(5).integers(0, 400, 200)


def reference_rewards(checkpoint: Path, bundle: Path) -> list[float]:
    """The published formula in numpy, on the checkpoint's weights as they stand."""
    encoded = Encoder(bundle / "tokenizer.json", read_manifest(bundle)).encode(Trajectory.of(PROMPT, STEPS))
    source = opened(checkpoint)
    run = ReferenceRun(source, [encoded])
    for layer in range(source.config.layers):
        run.run_layer(layer)
    return run.rewards(read_head(source), 0, encoded.read_at)


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_rewards_are_those_of_the_checkpoint(
    checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path], head: str, kind: str
) -> None:
    expected = reference_rewards(checkpoint_of(head), bundle_of(head, kind))
    assert np.std(expected) > 0.05
    with edge_prm.load(bundle_of(head, kind)) as prm:
        rewards = prm.score(PROMPT, STEPS).rewards
    assert np.abs(np.subtract(rewards, expected)).max() <= TOLERANCES[kind]


def test_rewards_are_those_of_transformers(
    checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path]
) -> None:
    expected = torch_rewards(checkpoint_of("sigmoid"), bundle_of("sigmoid", "f32"), "sigmoid")
    with edge_prm.load(bundle_of("sigmoid", "f32")) as prm:
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=TOLERANCES["f32"])


@pytest.mark.parametrize("rotate", [False, True])
def test_a_rotation_changes_nothing_in_full_precision(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, rotate: bool
) -> None:
    folder = export(str(checkpoint_of("sigmoid")), tmp_path / "out", gguf=True, recipe="fp32", rotate=rotate)
    assert read_manifest(folder).recipe.rotated == rotate
    expected = reference_rewards(checkpoint_of("sigmoid"), folder)
    with edge_prm.load(folder) as prm:
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=TOLERANCES["f32"])


def test_of_both_ways_the_closer_one_is_kept(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", checkpoint_of("sigmoid") / "tokenizer.json", dtype="fp32")
    plain = export(str(source), tmp_path / "any", gguf=True, gguf_type="Q4_0")
    made = {}
    for rotate in (False, True):
        made[rotate] = export(str(source), tmp_path / f"rotate-{rotate}", gguf=True, gguf_type="Q4_0", rotate=rotate)
    kept = read_manifest(plain).recipe.rotated
    assert (plain / "model.gguf").read_bytes() == (made[kept] / "model.gguf").read_bytes()
    assert (plain / "model.gguf").read_bytes() != (made[not kept] / "model.gguf").read_bytes()
    assert sorted(path.name for path in plain.iterdir()) == ["edge_prm.json", "model.gguf", "tokenizer.json"]


def test_any_tool_finds_the_reward_in_the_logits(
    checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path]
) -> None:
    """The head's row is a token like any other: its logit, scale and bias give the reward without this package."""
    import llama_cpp
    from gguf import GGUFReader

    folder = bundle_of("sigmoid", "q8_0")
    fields = GGUFReader(folder / "model.gguf").fields
    row, residual, scale, bias = (
        fields[f"edge_prm.head.{name}"].contents() for name in ("row", "residual_row", "scale", "bias")
    )
    encoded = Encoder(folder / "tokenizer.json", read_manifest(folder)).encode(Trajectory.of(PROMPT, STEPS))
    model = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=256, logits_all=True, verbose=False)
    model.eval(encoded.ids.tolist())
    logits = np.array([model.scores[at, [row, residual]] for at in encoded.read_at])
    rewards = 1 / (1 + np.exp(-((logits[:, 0] + logits[:, 1] / 128) / scale + bias)))
    expected = reference_rewards(checkpoint_of("sigmoid"), folder)
    assert np.abs(rewards - expected).max() <= TOLERANCES["q8_0"]


@given(
    text=st.lists(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from(
                ["<|im_start|>", "<|endoftext|>", "<extra_0>", "[PAD484]", "\n\n", "\r\n", "<think>", "\t"]
            ),
            st.integers(1, 60).map(lambda count: " " * count),
        ),
        min_size=1,
        max_size=6,
    ).map("".join)
)
def test_onnx_and_gguf_bundles_give_the_same_token_ids(bundle_of: Callable[..., Path], text: str) -> None:
    need_engine("onnx")
    for head in ("sigmoid", "two_class", "token_class"):
        encoded = []
        for recipe in ("int8", "q8_0"):
            encoder = _encoder(bundle_of(head, recipe))
            encoded.append(encoder.encode(Trajectory.of(f"P{text}", [f"{text}."])))
        assert encoded[0].ids.tolist() == encoded[1].ids.tolist()
        assert encoded[0].read_at == encoded[1].read_at


_encoders: dict[Path, Encoder] = {}


def _encoder(folder: Path) -> Encoder:
    if folder not in _encoders:
        _encoders[folder] = Encoder(folder / "tokenizer.json", read_manifest(folder))
    return _encoders[folder]


def test_candidates_cost_the_prompt_once(bundle_of: Callable[..., Path]) -> None:
    prompt = PROMPT * 4
    candidates = [f"{index} eggs are left.\n\nShe sells {index} of them." for index in range(16)]
    encoder = _encoder(bundle_of("sigmoid", "q8_0"))
    tokens = len(encoder.encode(Trajectory.of(prompt, ["x"])).ids)
    own = [len(encoder.encode(Trajectory.of(prompt, candidate)).ids) - tokens for candidate in candidates]
    with edge_prm.load(bundle_of("sigmoid", "q8_0")) as prm:
        ranking = prm.rank(prompt, candidates)
        alone = []
        for candidate in candidates:
            with prm.session(prompt) as session:
                for step in candidate.split("\n\n"):
                    session.push(step, last=step.startswith("She"))
                alone.append(session.rewards)
    assert tokens <= ranking.computed <= tokens + sum(own) + 2 * len(candidates)
    assert np.abs(np.subtract(ranking.rewards, alone)).max() <= TOLERANCES["q8_0"]


def test_branches_share_cells_and_the_context_grows(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 256)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    expected = model.start().extend(IDS, [199])[0]
    gc.collect()
    trunk = model.start()
    trunk.extend(IDS[:199], [])
    branches = [trunk.branch() for _ in range(20)]
    rewards = [branch.extend(IDS[199:], [0])[0] for branch in branches]
    assert model.cells == 256
    rewards.append(trunk.extend(IDS[199:], [0])[0])
    other = model.start()
    other.extend(IDS, [])
    assert model.cells == 512
    for branch in branches[:3]:
        branch.trim(199)
        rewards.append(branch.extend(IDS[199:], [0])[0])
    assert np.abs(np.array(rewards) - expected).max() <= TOLERANCES["f32"]
    model.close()


def test_sequences_come_back_when_nobody_holds_them(bundle_of: Callable[..., Path]) -> None:
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    for _ in range(3 * limits.MAX_SEQUENCES):
        model.start().extend(IDS[:4], [3])
        gc.collect(0)
    held: list[Backend] = []
    with pytest.raises(BackendError, match=f"{limits.MAX_SEQUENCES} sequences are open"):
        open_many(model, held)
    held[0].close()
    model.start().extend(IDS[:4], [3])
    model.close()
    with pytest.raises(BackendError, match="closed"):
        held[1].extend(IDS[:4], [3])
    with pytest.raises(BackendError, match="closed"):
        held[1].branch()


def test_as_many_sessions_as_llama_cpp_allows_can_be_open_after_a_score(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SEQUENCES", 8)
    with edge_prm.load(bundle_of("sigmoid", "f32"), threads=1) as prm:
        expected = prm.score(PROMPT, STEPS[:1]).rewards  # it leaves an idle sequence
        sessions = [prm.session(PROMPT) for _ in range(8)]
        pushed = [session.push(STEPS[0], last=True) for session in sessions]
        assert pushed == pytest.approx(expected * 8, abs=TOLERANCES["f32"])
        with pytest.raises(BackendError, match="8 sequences are open; close a session"):
            prm.score(PROMPT, STEPS)
        sessions[0].close()
        assert len(prm.score(PROMPT, STEPS).rewards) == len(STEPS)


def test_a_context_is_small_again_when_a_long_text_is_forgotten(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    kept = model.start()
    kept.extend(IDS[:150], [])
    expected = kept.branch().extend(IDS[150:], [49])[0]
    long = model.start()
    long.extend(np.resize(IDS, 4000), [3999])
    assert 4096 <= model.cells <= 4608
    long.close()  # without another call: an application that is idle must not keep the memory
    assert model.cells == 512
    assert abs(kept.extend(IDS[150:], [49])[0] - expected) <= TOLERANCES["f32"]
    model.close()


def test_a_context_grows_once_for_a_long_text_and_never_holds_two(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    made: list[int] = []
    make = Context._make

    def counted(self: Context, cells: int, sequences: int) -> object:
        assert self._handles.context is None
        made.append(cells)
        return make(self, cells, sequences)

    monkeypatch.setattr(Context, "_make", counted)
    model.start().extend(np.resize(IDS, 3000), [2999])
    assert made == [3072]
    model.close()


def test_without_memory_for_more_cells_what_was_held_stays(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_CELLS", 512)
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    held = model.start()
    held.extend(IDS[:100], [])
    expected = held.branch().extend(IDS[100:150], [49])[0]
    make = Context._make

    def full(self: Context, cells: int, sequences: int) -> object:
        if cells > 512:
            raise BackendError("llama.cpp has no memory")
        return make(self, cells, sequences)

    monkeypatch.setattr(Context, "_make", full)
    with pytest.raises(BackendError, match="no memory"):
        model.start().extend(np.resize(IDS, 1000), [])
    gc.collect()
    assert abs(held.extend(IDS[100:150], [49])[0] - expected) <= TOLERANCES["f32"]
    model.close()


def test_a_run_that_is_stopped_leaves_the_sequence_usable(bundle_of: Callable[..., Path]) -> None:
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    sequence = model.start()
    sequence.extend(IDS[:100], [])
    expected = sequence.branch().extend(IDS[100:], [99])[0]
    stop = StopFlag()
    stop.set()
    with pytest.raises(BackendError, match="failed at token 100"):
        model._run(sequence.sequence, IDS[100:], 100, [99], 0, stop)  # type: ignore[attr-defined]
    model.run(sequence.sequence, IDS[:50], 100, [])  # type: ignore[attr-defined]  # as if interrupted after it
    assert abs(sequence.extend(IDS[100:], [99])[0] - expected) <= TOLERANCES["f32"]
    model.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_what_goes_wrong_in_a_callback_comes_out_of_the_run(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    model = load_model(open_bundle(bundle_of("sigmoid", "f32")), EngineOptions(1, "cpu"))
    sequence = model.start()
    expected = sequence.extend(IDS[:20], [19])[0]
    sequence.trim(0)

    def fail(tensor: int) -> bytes:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(model._context.tap, "_name", fail)  # type: ignore[attr-defined]
        with pytest.raises(kind):
            sequence.extend(IDS[:20], [19])
    assert sequence.offset == 0
    assert abs(sequence.extend(IDS[:20], [19])[0] - expected) <= TOLERANCES["f32"]
    model.close()


LOG = """
import ctypes, gc, sys
import llama_cpp
import edge_prm
lines = []
hear = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text))
llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
prm = edge_prm.load(sys.argv[1])
prm.score("q", ["a", "b"])
prm.close()
ours = len(lines)
assert (ours > 0) == (sys.argv[2] == "heard"), ours
llama_cpp.llama_model_load_from_file(b"nowhere.gguf", llama_cpp.llama_model_default_params())
assert len(lines) > ours, "the application's own llama.cpp is silent"
"""


@pytest.mark.parametrize(("value", "expected"), [(None, "silent"), ("0", "silent"), ("1", "heard")])
def test_the_log_of_the_application_s_own_llama_cpp_is_given_back(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, value: str | None, expected: str
) -> None:
    monkeypatch.delenv("EDGE_PRM_LLAMA_LOG", raising=False)
    if value is not None:
        monkeypatch.setenv("EDGE_PRM_LLAMA_LOG", value)
    run(["-c", LOG, str(bundle_of("sigmoid", "q8_0")), expected])


def open_many(model: Model, held: list[Backend]) -> None:
    for _ in range(limits.MAX_SEQUENCES + 1):
        held.append(model.start())
        held[-1].extend(IDS[:4], [3])


def test_threads_take_turns(bundle_of: Callable[..., Path]) -> None:
    with edge_prm.load(bundle_of("sigmoid", "f32"), threads=1) as prm:
        expected = prm.score(PROMPT, STEPS).rewards

        def work(worker: int) -> None:
            for count in range(1, len(STEPS) + 1):
                rewards = prm.score(f"{worker}{PROMPT}", STEPS[:count]).rewards
                assert len(rewards) == count
            with prm.session(PROMPT) as session:
                found = [session.push(step, last=step is STEPS[-1]) for step in STEPS]
            assert np.abs(np.subtract(found, expected)).max() <= TOLERANCES["f32"]

        run_threads(work, 4)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_pushed_rewards_are_those_of_one_shot(bundle_of: Callable[..., Path], seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = [f"{a} + {b} = {a + b}" for a, b in rng.integers(0, 99, (rng.integers(1, 6), 2))]
    with edge_prm.load(bundle_of("sigmoid", "q8_0"), threads=1) as prm, prm.session(PROMPT) as session:
        pushed = [session.push(step, last=index == len(steps) - 1) for index, step in enumerate(steps)]
        whole = prm.score(PROMPT, steps)
        assert session.computed <= whole.tokens + 2 * len(steps)
    assert np.abs(np.subtract(pushed, whole.rewards)).max() <= 0.03


def test_check_trusts_a_good_bundle(bundle_of: Callable[..., Path]) -> None:
    from edge_prm.check import check_bundle

    result = check_bundle(open_bundle(bundle_of("sigmoid", "q8_0"), verify_all=True))
    assert result.trusted
    assert result.incremental_difference <= 0.02
    assert result.max_difference <= result.tolerance


def test_the_engine_is_quiet(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": PROMPT, "steps": STEPS}))
    command = ["-m", "edge_prm.cli.main", "score", str(bundle_of("sigmoid", "q8_0")), str(rows), "--json"]
    done = run(command)
    assert done.stderr == ""
    assert len(json.loads(done.stdout)["rewards"]) == len(STEPS)


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


DAMAGE = """
import json, sys
import numpy as np
import edge_prm
from edge_prm.backends.gguf.model import GgufModel
from edge_prm.bundle import Bundle
from edge_prm.errors import EdgePRMError
from edge_prm.manifest import read_manifest
from pathlib import Path

folder, copy = Path(sys.argv[1]), Path(sys.argv[2])
whole = (folder / "model.gguf").read_bytes()
rng = np.random.default_rng(7)
outcomes = {"refused": 0, "ran": 0}
for trial in range(int(sys.argv[3])):
    data = bytearray(whole)
    end = [1500, 24_000, len(data)][trial % 3]
    for at in rng.integers(0, end, rng.integers(1, 5)):
        data[at] = rng.integers(0, 256)
    if trial % 10 == 9:
        data = data[: rng.integers(0, len(data))]
    (copy / "model.gguf").write_bytes(data)
    try:
        model = GgufModel(Bundle(copy, read_manifest(folder)), 1, "cpu")
        model.start().extend(np.arange(40), [1, 39])
        model.close()
        outcomes["ran"] += 1
    except EdgePRMError:
        outcomes["refused"] += 1
print(json.dumps(outcomes))
"""


def test_no_damage_ends_the_process(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    done = run(["-c", DAMAGE, str(bundle_of("sigmoid", "q8_0")), str(tmp_path), "150"])
    outcomes = json.loads(done.stdout)
    assert outcomes["refused"] > 40
    assert outcomes["ran"] > 20


def test_a_damaged_bundle_is_refused_by_name(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_of("sigmoid", "q8_0"), tmp_path / "own"))
    data = bytearray((folder / "model.gguf").read_bytes())
    data[-1] ^= 1
    (folder / "model.gguf").write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        edge_prm.load(folder)


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gguf": True, "recipe": "int3"}, "choose one of int8, int4, fp16, fp32"),
        ({"gguf": True, "gguf_type": "Q9_9"}, "gguf_type 'Q9_9' is not known"),
        ({"gguf": True, "reduce_range": True}, "reduce_range is for ONNX bundles"),
        ({"gguf_type": "Q8_0"}, "options of a GGUF bundle"),
        ({"rotate": True}, "options of a GGUF bundle"),
    ],
)
def test_bad_options_are_named(checkpoint_of: Callable[[str], Path], tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        export(str(checkpoint_of("sigmoid")), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_fails_leaves_nothing_behind(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_model_quantize", lambda *_: 1)
    with pytest.raises(edge_prm.EdgePRMError, match="cannot quantize to Q4_K_M"):
        export(str(checkpoint_of("sigmoid")), tmp_path / "out", gguf=True, recipe="int4")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        export(str(checkpoint_of("sigmoid")), tmp_path / "out", gguf=True)


def test_no_torch_is_loaded(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    code = (
        "import sys, edge_prm_export; edge_prm_export.export(sys.argv[1], sys.argv[2], gguf=True); "
        "assert 'torch' not in sys.modules"
    )
    run(["-c", code, str(checkpoint_of("sigmoid")), str(tmp_path / "out")])
