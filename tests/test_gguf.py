"""GGUF bundles on llama.cpp: rewards of the checkpoint, shared cells, no word on stderr, nothing that ends the process."""

from __future__ import annotations

import json
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

import edge_prm
from edge_prm.bundle import open_bundle
from edge_prm.encode import Encoder
from edge_prm.errors import BundleError, InputError, OutputExistsError
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
