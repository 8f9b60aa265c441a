"""Every model family, natively and without torch: one row each of `tiny.FAMILIES`.

Parity with plain transformers (fp32), equal bits in any pieces (int8), names and shapes by role, and exact transforms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HEADS, REDUCED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_imports import loaded_after
from tiny import FAMILIES, LLAMA3_SCALING, opened, set_config, write_checkpoint

import edge_prm
from edge_prm.backends import EngineOptions, Model, load_model
from edge_prm.bundle import open_bundle
from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import CheckpointError, UnsupportedArchitectureError
from edge_prm.manifest import read_manifest
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.config import Llama3Scaling, Rope
from edge_prm_export.decoder.layers import LayerInputs, LayerWeights
from edge_prm_export.decoder.names import check_decoder, decoder_names, layer_roles
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.rope import inverse_frequencies, rope_factors
from edge_prm_export.decoder.smooth import layer_scales
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues, Smooth, Transform

pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')

PROMPT = "How many eggs does she sell at the market?"
STEPS = ["Janet has 16 eggs a day.", "She eats 3 of them 😀.", "16 - 3 = 14", "The answer is 14."]
PAIR = ("+", "-")
LENGTH = 70
CUTS = st.sets(st.integers(1, LENGTH - 1), max_size=12)
few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """(family, head) -> folder of a checkpoint in fp32; not to be changed."""
    written: dict[tuple[str, str], Path] = {}

    def write(family: str, head: str = "sigmoid") -> Path:
        if (family, head) not in written:
            folder = tmp_path_factory.mktemp("family")
            tokenizer = FAMILIES[family].write_tokenizer(folder / "tokenizer.json")
            own = "none" if head == "token_pair" else head
            written[family, head] = write_checkpoint(folder / f"{family}-{head}", tokenizer, own, "fp32", family=family)
        return written[family, head]

    return write


def exported(source: Path, target: Path, recipe: str, **options: Any) -> Path:
    pytest.importorskip("onnx", reason='exporting needs onnx: pip install "edge-prm[export]"')
    pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')
    from edge_prm_export import export

    reduce_range = REDUCED and recipe == "int8" and options.get("device") != "cuda"
    return export(str(source), target, recipe=recipe, reduce_range=reduce_range, **options)


# rewards


@pytest.mark.parametrize("head", [*HEADS, "token_pair"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_in_fp32_are_those_of_transformers(
    family_checkpoint: Checkpoints, tmp_path: Path, family: str, head: str
) -> None:
    source = family_checkpoint(family, head)
    expected_of = transformers_rewards(source, head)
    bundle = exported(source, tmp_path / "out", "fp32", token_pair=PAIR if head == "token_pair" else None)
    manifest = read_manifest(bundle)
    assert (manifest.backend, manifest.architecture.model_type) == ("onnx", FAMILIES[family].config["model_type"])
    encoded = Encoder(bundle / "tokenizer.json", manifest).encode(Trajectory.of(PROMPT, STEPS))
    expected = expected_of(encoded.ids, list(encoded.read_at))
    assert expected.std() > 0.02  # a difference would show
    with edge_prm.load(bundle, threads=1) as prm:
        rewards = prm.score(PROMPT, STEPS).rewards
    assert np.abs(np.subtract(rewards, expected)).max() <= 1e-5


def transformers_rewards(source: Path, head: str) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    """The head's formula on the hidden states, or on the logits, of transformers."""
    reason = 'the oracle is transformers: pip install "edge-prm[reference]"'
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    load_file = pytest.importorskip("safetensors.torch", reason=reason).load_file
    weights = load_file(source / "model.safetensors")
    net = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def outputs(ids: np.ndarray, read_at: list[int]) -> Any:
        result = net(torch.from_numpy(ids)[None], output_hidden_states=True)
        hidden = result.hidden_states[-1][0, read_at]
        if head == "token_pair":
            vocabulary = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
            return result.logits[0, read_at][:, [vocabulary[PAIR[1]], vocabulary[PAIR[0]]]].softmax(-1)[:, 1]
        if head == "sigmoid":
            state = torch.load(source / "reward_head.pt", weights_only=True)
            return torch.sigmoid(hidden @ state["weight"].T + state["bias"])[:, 0]
        if head == "two_class":
            hidden = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        name = "score.2" if head == "two_class" else "score"
        return (hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).softmax(-1)[:, 1]

    def rewards(ids: np.ndarray, read_at: list[int]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(outputs(ids, read_at).numpy())

    return rewards


QUANTIZED = [
    *((family, "int8", "cpu") for family in sorted(FAMILIES)),
    ("qwen3", "int4", "cpu"), ("qwen3", "fp16", "cpu"), ("llama3", "int8", "cuda"), ("mistral", "int4", "cuda"),
]  # fmt: skip
"""(family, recipe and device of export): each writes attention's inputs in its own way."""


@pytest.fixture(scope="module", params=QUANTIZED, ids="-".join)
def quantized(
    request: pytest.FixtureRequest, family_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    family, recipe, device = request.param
    folder = exported(family_checkpoint(family), tmp_path_factory.mktemp("quantized") / "out", recipe, device=device)
    loaded = load_model(open_bundle(folder), EngineOptions(1))
    yield loaded
    loaded.close()


IDS = np.random.default_rng(5).integers(0, 400, LENGTH)


@pytest.fixture(scope="module")
def at_once(quantized: Model) -> np.ndarray:
    """The reward at every token, in one go."""
    return quantized.start().extend(IDS, range(LENGTH))


@few
@given(cuts=CUTS)
def test_rewards_are_the_same_bits_in_any_pieces(quantized: Model, at_once: np.ndarray, cuts: set[int]) -> None:
    assert at_once.std() > 0.05
    sequence = quantized.start()
    edges = [0, *sorted(cuts), LENGTH]
    rewards = [sequence.extend(IDS[start:end], range(end - start)) for start, end in pairwise(edges)]
    assert np.array_equal(np.concatenate(rewards), at_once)


def test_rewards_are_the_same_bits_after_a_piece_of_any_length(quantized: Model, at_once: np.ndarray) -> None:
    different = [
        length
        for length in range(1, LENGTH + 1)
        if quantized.start().extend(IDS[:length], [length - 1])[0] != at_once[length - 1]
    ]
    assert different == []


@few
@given(at=st.integers(1, LENGTH - 1))
def test_rewards_are_the_same_bits_on_branches_and_after_trims(quantized: Model, at_once: np.ndarray, at: int) -> None:
    trunk = quantized.start()
    trunk.extend(IDS, [])
    trunk.trim(at)
    branch = trunk.branch()
    trunk.extend(IDS[::-1], [])
    assert np.array_equal(branch.extend(IDS[at:], range(LENGTH - at)), at_once[at:])


@pytest.mark.parametrize(("family", "head_dim"), [("mistral", 64), ("qwen3", 80), ("llama", 128)])
def test_heads_of_any_size_are_computed(
    family_checkpoint: Checkpoints, tmp_path: Path, family: str, head_dim: int
) -> None:
    tokenizer = family_checkpoint(family) / "tokenizer.json"
    source = write_checkpoint(tmp_path / "source", tokenizer, "sigmoid", "fp32", family=family, head_dim=head_dim)
    expected = transformers_rewards(source, "sigmoid")(IDS, list(range(LENGTH)))
    for recipe, limit in (("fp32", 1e-5), ("int8", 0.15)):  # the largest of 70 differences, of a sharp random model
        model = load_model(open_bundle(exported(source, tmp_path / recipe, recipe)), EngineOptions(1))
        assert np.abs(model.start().extend(IDS, range(LENGTH)) - expected).max() <= limit
        model.close()


def test_exporting_any_family_never_loads_torch(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason='scoring needs onnxruntime: pip install "edge-prm[cpu]"')
    code = "from edge_prm_export import export\n" + "\n".join(
        f"export({str(family_checkpoint(family))!r}, {str(tmp_path / (family + recipe))!r}, recipe={recipe!r})"
        for family in FAMILIES
        for recipe in ("int8", "fp32")
    )
    assert loaded_after(code).isdisjoint({"torch", "transformers", "optimum", "huggingface_hub"})


def test_a_sliding_window_is_the_longest_context(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tokenizer = family_checkpoint("mistral") / "tokenizer.json"
    for window, context in ((200, 200), (None, 512), (KeyError, 512)):
        source = write_checkpoint(tmp_path / "source", tokenizer, family="mistral")
        set_config(source, sliding_window=window)
        assert opened(source).spec.shapes.context_length == context
    assert opened(set_config(source, max_position_embeddings=32768)).spec.shapes.context_length == 4096


# config.json


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"attention_bias": True}, "attention_bias in llama"),
        ("llama", {"mlp_bias": True}, "mlp_bias in llama"),
        ("qwen3", {"attention_bias": True}, "attention_bias in qwen3"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        ("mistral", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("qwen3", {"head_dim": 24}, "head_dim 24"),
    ],
)
def test_what_a_family_cannot_compute_is_refused_by_name(
    family_checkpoint: Checkpoints, tmp_path: Path, family: str, changes: dict[str, Any], said: str
) -> None:
    tokenizer = family_checkpoint(family) / "tokenizer.json"
    source = write_checkpoint(tmp_path / "source", tokenizer, family=family, **changes)
    with pytest.raises(UnsupportedArchitectureError, match=said):
        opened(source)


@pytest.mark.parametrize(
    "missing", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
)
def test_a_scaling_without_one_of_its_numbers_is_damage(
    family_checkpoint: Checkpoints, tmp_path: Path, missing: str
) -> None:
    scaling = {key: value for key, value in LLAMA3_SCALING.items() if key != missing}
    tokenizer = family_checkpoint("llama3") / "tokenizer.json"
    with pytest.raises(CheckpointError, match=f"incomplete or damaged .*{missing}"):
        opened(write_checkpoint(tmp_path / "source", tokenizer, family="llama3", rope_scaling=scaling))


# names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_of_a_family_are_all_needed_and_no_others(
    family_checkpoint: Checkpoints, tmp_path: Path, family: str
) -> None:
    source = opened(family_checkpoint(family))
    check_decoder(source)
    assert set(decoder_names(source.spec)) == source.tensor_names
    tokenizer = source.folder / "tokenizer.json"
    for name in sorted(source.tensor_names):
        if "layers.1" in name:
            continue
        with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
            check_decoder(opened(write_checkpoint(tmp_path / "less", tokenizer, family=family, drop=[name])))
    surplus = {"model.layers.0.self_attn.o_proj.bias": np.zeros(64, dtype=np.float32)}
    with pytest.raises(CheckpointError, match=rf"o_proj\.bias, which a {source.spec.family} decoder of 2 layers"):
        check_decoder(opened(write_checkpoint(tmp_path / "more", tokenizer, family=family, replace=surplus)))


def test_which_tensors_a_layer_has_follows_from_the_spec(family_checkpoint: Checkpoints) -> None:
    roles = {family: set(layer_roles(opened(family_checkpoint(family)).spec)) for family in FAMILIES}
    assert roles["qwen2"] - roles["llama"] == {"q_bias", "k_bias", "v_bias"}
    assert roles["qwen3"] - roles["llama"] == {"q_norm", "k_norm"}
    assert roles["llama"] == roles["llama3"] == roles["mistral"]


# rotary embeddings


def test_frequencies_without_scaling_are_those_of_roformer() -> None:
    assert rope_factors(Rope(1e4), 64) is None
    expected = [1e4 ** (-2 * i / 64) for i in range(32)]
    assert np.allclose(inverse_frequencies(Rope(1e4), 64), expected, rtol=1e-14)


def test_llama3_scaling_keeps_fast_dimensions_and_stretches_slow_ones() -> None:
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
    rope = Rope(500000.0, scaling)
    factors = rope_factors(rope, 128)
    assert factors is not None
    assert factors.shape == (64,)
    wavelengths = 2 * np.pi / inverse_frequencies(replace(rope, scaling=None), 128)
    assert (factors[wavelengths < 8192 / 4] == 1).all()
    assert (factors[wavelengths > 8192] == 8).all()
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    assert between.any()
    assert ((factors[between] > 1) & (factors[between] < 8)).all()


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_llama3_frequencies_are_those_of_transformers(head_dim: int) -> None:
    utilities = pytest.importorskip("transformers.modeling_rope_utils", reason='pip install "edge-prm[reference]"')
    from transformers import LlamaConfig

    numbers = LLAMA3_SCALING | {"original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=head_dim, rope_theta=500000.0, rope_scaling=numbers, max_position_embeddings=131072)
    expected, _ = utilities.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    rope = Rope(500000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192.0))
    assert np.allclose(inverse_frequencies(rope, head_dim), expected.numpy(), rtol=2e-6)


# transforms


def transforms_of(name: str, decoder: TransformedDecoder, inputs: list[LayerInputs]) -> list[Transform]:
    shapes = decoder.shapes
    scales = [layer_scales(decoder.source, index, seen, 4) for index, seen in enumerate(inputs)]
    return {
        "nothing": [],
        "folded": [FoldNorms()],
        "smooth": [Smooth(shapes, scales)],
        "rotated": [
            Smooth(shapes, scales, only_down=True), RotateValues(shapes), FoldNorms(), RotateResidual(shapes),
        ],
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["nothing", "folded", "smooth", "rotated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transforms_leave_every_product_as_it_is(family_checkpoint: Checkpoints, family: str, name: str) -> None:
    """Inputs and weights change together: what a linear layer gives is the same, up to the rotation of its output."""
    source = opened(family_checkpoint(family))
    run, layers = ReferenceRun(source, [Encoded(IDS, (3, len(IDS) - 1))]), range(source.spec.shapes.layers)
    inputs = [run.run_layer(index) for index in layers]
    plain = TransformedDecoder(source)
    changed = TransformedDecoder(source, transforms_of(name, plain, inputs))
    assert changed.rotated == (name == "rotated")
    for index, seen in zip(layers, inputs, strict=True):
        before = products(plain.layer(index), plain.inputs(index, seen))
        after = products(changed.layer(index), changed.inputs(index, seen))
        for role in ("q", "k", "gate"):
            assert np.allclose(before[role], after[role], atol=2e-4), role
        for role in ("o", "down"):  # these write to the residual stream
            residual = before[role]
            for transform in changed.transforms:
                residual = transform.residual(residual)
            assert np.allclose(residual, after[role], atol=2e-4), role


def products(layer: LayerWeights, inputs: LayerInputs) -> dict[str, np.ndarray]:
    rows = {"q": inputs.attention, "k": inputs.attention, "gate": inputs.feed_forward, "o": inputs.output}
    rows["down"] = inputs.down
    return {role: values @ getattr(layer, role).weight().T for role, values in rows.items()}


def test_a_rotation_without_folded_norms_is_a_mistake(family_checkpoint: Checkpoints) -> None:
    source = opened(family_checkpoint("llama"))
    rotation = RotateResidual(source.spec.shapes)
    for transforms in ([rotation], [rotation, FoldNorms()]):
        with pytest.raises(ValueError, match="needs FoldNorms before it"):
            TransformedDecoder(source, transforms)


def test_a_layer_is_read_when_its_weights_are_needed(
    family_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An 8B model's layer takes 900 MB in float32."""
    source = opened(family_checkpoint("llama"))
    read: list[str] = []
    tensor = source.tensor
    monkeypatch.setattr(source, "tensor", lambda name, *shape: (read.append(name), tensor(name, *shape))[1])
    shapes = source.spec.shapes
    layer = TransformedDecoder(source, [RotateValues(shapes), FoldNorms(), RotateResidual(shapes)]).layer(0)
    assert all("norm" in name for name in read)
    read.clear()
    layer.down.weight()
    assert read == ["model.layers.0.mlp.down_proj.weight"]
