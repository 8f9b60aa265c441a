"""An exported bundle gives the rewards of the checkpoint, as an independent implementation computes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REDUCED
from tiny import write_checkpoint

import edge_prm
from edge_prm.encode import Encoder
from edge_prm.errors import CheckpointError, InputError
from edge_prm.manifest import read_manifest
from edge_prm.trajectory import Trajectory

pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')

from edge_prm_export import export
from edge_prm_export.checkpoint.files import open_checkpoint

PROMPT = "How many eggs does she sell at the market?"
STEPS = ["Janet has 16 eggs a day.", "She eats 3 of them 😀.", "16 - 3 = 14", "The answer is 14."]
# four bits of a tiny random checkpoint, whose rewards differ by 0.5, are coarse
TOLERANCES = {"fp32": 2e-5, "int8": 0.06, "fp16": 0.005, "w8a16": 0.04, "int4": 0.25, "w4a16": 0.25}


def torch_rewards(checkpoint: Path, bundle: Path, head: str) -> list[float]:
    """Rewards by transformers' Qwen2 and the head's formula, at the positions that the bundle's encoder names."""
    reason = "the independent implementation is transformers: pip install torch transformers"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    safetensors = pytest.importorskip("safetensors.torch", reason=reason)
    encoded = Encoder(bundle / "tokenizer.json", read_manifest(bundle)).encode(Trajectory.of(PROMPT, STEPS))
    weights = {k: v.float() for k, v in safetensors.load_file(checkpoint / "model.safetensors").items()}
    model = transformers.Qwen2Model(transformers.Qwen2Config.from_pretrained(checkpoint)).float().eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    with torch.no_grad():
        hidden = model(torch.from_numpy(encoded.ids)[None]).last_hidden_state[0, list(encoded.read_at)]
        if head == "sigmoid":
            state = torch.load(checkpoint / "reward_head.pt", weights_only=True)
            return torch.sigmoid(hidden @ state["weight"].T + state["bias"])[:, 0].tolist()
        if head == "two_class":
            hidden = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        name = "score.2" if head == "two_class" else "score"
        return torch.softmax(hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], -1)[:, 1].tolist()


@pytest.mark.parametrize("recipe", TOLERANCES)
@pytest.mark.parametrize("head", ["sigmoid", "two_class", "token_class"])
def test_rewards_are_those_of_transformers(
    checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path], head: str, recipe: str
) -> None:
    expected = torch_rewards(checkpoint_of(head), bundle_of(head, recipe), head)
    with edge_prm.load(bundle_of(head, recipe)) as prm:
        rewards = prm.score(PROMPT, STEPS).rewards
    assert np.abs(np.array(rewards) - expected).max() < TOLERANCES[recipe]
    assert np.std(expected) > 0.02, "rewards that are all alike would agree by chance"


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "fp16", "shards": 3},
        {"dtype": "fp32", "tied": False},
        {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 96, "num_hidden_layers": 1},
        {"hidden_size": 128, "intermediate_size": 100, "num_key_value_heads": 4, "rope_theta": 1e6},
    ],
    ids=str,
)
def test_checkpoints_of_other_shapes_are_close_to_full_precision(
    tmp_path: Path, tokenizer_file: Path, options: dict[str, Any]
) -> None:
    source = write_checkpoint(tmp_path / "source", tokenizer_file, seed=3, **options)
    bounds = {"fp32": 1e-5, "int8": 0.09 if REDUCED else 0.06}
    for recipe, bound in bounds.items():
        reduce_range = REDUCED and recipe == "int8"
        manifest = read_manifest(export(str(source), tmp_path / recipe, recipe=recipe, reduce_range=reduce_range))
        assert manifest.fidelity is not None
        assert manifest.fidelity.max_difference < bound
        assert manifest.fidelity.reward_count == sum(len(golden.steps) for golden in manifest.golden)


def test_reduced_range_keeps_weights_within_seven_bits(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> None:
    import onnx
    from onnx import numpy_helper

    largest = {}
    for reduce_range in (False, True):
        folder = export(str(checkpoint_of("sigmoid")), tmp_path / str(reduce_range), reduce_range=reduce_range)
        tensors = onnx.load(folder / "model.onnx").graph.initializer
        weights = [t for t in tensors if t.data_type == onnx.TensorProto.INT8 and "embedding" not in t.name]
        largest[reduce_range] = max(np.abs(numpy_helper.to_array(t).astype(int)).max() for t in weights)
    assert largest == {False: 127, True: 63}


def test_the_same_checkpoint_gives_the_same_bundle(
    tmp_path: Path, checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path]
) -> None:
    again = read_manifest(export(str(checkpoint_of("sigmoid")), tmp_path / "again", reduce_range=REDUCED))
    assert again == read_manifest(bundle_of("sigmoid", "int8"))


def test_the_graph_is_one_that_onnx_accepts(bundle_of: Callable[..., Path]) -> None:
    import onnx

    model = onnx.load(bundle_of("sigmoid", "fp32") / "model.onnx", load_external_data=False)
    names = [value.name for value in model.graph.input]
    assert names[:3] == ["input_ids", "read_at", "offset"]
    assert "rewards" in [value.name for value in model.graph.output]
    assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


DAMAGE = {
    "shape": lambda values: np.ones((3, 5), dtype=np.float32),
    "nan": lambda values: np.full(values.shape, math.nan, dtype=np.float32),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.embed_tokens.weight", "shape"),
        ("model.layers.0.self_attn.q_proj.weight", "shape"),
        ("model.layers.0.self_attn.k_proj.bias", "shape"),
        ("model.layers.1.self_attn.o_proj.weight", "shape"),
        ("model.layers.0.input_layernorm.weight", "shape"),
        ("model.layers.1.mlp.gate_proj.weight", "shape"),
        ("model.layers.1.mlp.down_proj.weight", "shape"),
        ("model.norm.weight", "shape"),
        ("model.layers.1.mlp.down_proj.weight", "missing"),
        ("model.norm.weight", "missing"),
        ("model.embed_tokens.weight", "nan"),
        ("model.layers.0.self_attn.v_proj.weight", "nan"),
    ],
)
def test_a_damaged_tensor_is_named_and_nothing_is_left(
    tmp_path: Path, tokenizer_file: Path, name: str, damage: str
) -> None:
    source = tmp_path / "source"
    if damage == "missing":
        write_checkpoint(source, tokenizer_file, drop=[name])
    else:
        values = open_checkpoint(str(write_checkpoint(source, tokenizer_file))).tensor(name)
        write_checkpoint(source, tokenizer_file, replace={name: DAMAGE[damage](values)})
    with pytest.raises(CheckpointError) as caught:
        export(str(source), tmp_path / "out", recipe="fp32")
    assert name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_model_of_a_short_context_gets_shorter_golden_trajectories(tmp_path: Path, tokenizer_file: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tokenizer_file, max_position_embeddings=96)
    manifest = read_manifest(export(str(source), tmp_path / "out"))
    assert all(golden.steps for golden in manifest.golden)
    with edge_prm.load(tmp_path / "out") as prm:
        for golden in manifest.golden:
            assert prm.score(golden.prompt, list(golden.steps)).tokens <= 96


def test_a_context_too_short_for_any_golden_trajectory_is_named(tmp_path: Path, tokenizer_file: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tokenizer_file, max_position_embeddings=8)
    with pytest.raises(CheckpointError, match="context of 8 tokens"):
        export(str(source), tmp_path / "out")


def test_full_precision_needs_no_calibration(
    tmp_path: Path, checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_prm_export import exporter as write_bundle
    from edge_prm_export.decoder import reference
    from edge_prm_export.onnx import decoder as to_onnx

    lengths: list[int] = []

    class Counted(reference.ReferenceRun):
        def __init__(self, checkpoint: Any, texts: Any) -> None:
            lengths.append(len(texts))
            super().__init__(checkpoint, texts)

    monkeypatch.setattr(to_onnx, "ReferenceRun", Counted)
    for recipe in ("fp32", "int8"):
        export(str(checkpoint_of("sigmoid")), tmp_path / recipe, recipe=recipe)
    assert lengths[0] == len(write_bundle.GOLDEN) < lengths[1]


def test_no_weight_of_the_language_model_s_head_is_in_the_bundle(tmp_path: Path, tokenizer_file: Path) -> None:
    sizes = []
    for tied in (True, False):
        source = write_checkpoint(tmp_path / f"source-{tied}", tokenizer_file, tied=tied)
        folder = export(str(source), tmp_path / f"out-{tied}", recipe="fp32")
        sizes.append((folder / "model.onnx.data").stat().st_size)
    assert sizes[0] == sizes[1]


def test_progress_is_told_to_the_end(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> None:
    from contextlib import contextmanager

    told: dict[str, list[int]] = {}

    @contextmanager
    def progress(label: str, total: int) -> Any:
        told[label] = [total, 0]

        def advance(done: int) -> None:
            told[label][1] += done

        yield advance

    export(str(checkpoint_of("sigmoid")), tmp_path / "out", recipe="fp32", progress=progress)
    assert told
    assert all(total == done > 0 for total, done in told.values())


def test_a_bad_recipe_is_named(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="recipe 'int3' is not known to ONNX; choose one of int8, fp32"):
        export(str(checkpoint_of("sigmoid")), tmp_path / "out", recipe="int3")


def test_the_manifest_tells_where_the_weights_came_from(bundle_of: Callable[..., Path]) -> None:
    fields = json.loads((bundle_of("two_class", "fp32") / "edge_prm.json").read_text(encoding="utf-8"))
    assert fields["source"]["name"] == "tiny-two_class"
    assert fields["source"]["revision"] is None
    assert len(fields["source"]["sha256"]) == 64
    assert fields["head"] == {"kind": "two_class", "default_aggregate": "min", "tokens": []}
    assert fields["input"]["separator"] == "<extra_0>"
    assert set(fields["files"]) == {"tokenizer.json", "model.onnx", "model.onnx.data"}
