"""What transformers would misread silently: configs of another release, missing weights, folders that are not a decoder in
full precision. `export` through optimum and `bench reference` read them right, or refuse them with the same sentence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_transformers import (
    TRAJECTORIES,
    assert_same,
    of_bundle,
    of_reference,
    oracle,
    outcome,
    torch,
    trace_once,
    write_llamas,
    write_no_family,
    write_tiny,
)
from tiny import set_config

from edge_prm.errors import CheckpointError
from edge_prm.manifest import read_manifest

traced_once = pytest.fixture(scope="module", autouse=True)(trace_once)
tiny_llama = pytest.fixture(scope="module")(write_llamas)
no_family = pytest.fixture(scope="module")(write_no_family)

# configs and weights


def _rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy with another config.json."""
    folder = Path(shutil.copytree(source, target))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(config)))
    return folder


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "options", "parameters"),
    [
        ("llama", {"rope_theta": 500.0}, {"rope_theta": 500.0, "rope_type": "default"}),
        ("llama", {"rope_theta": 900.0, "rope_scaling": LLAMA3}, {"rope_theta": 900.0, **LLAMA3}),
        ("qwen2", {"rope_theta": 500.0}, {"rope_theta": 500.0, "rope_type": "default"}),
        ("mistral", {"rope_theta": 300.0}, {"rope_theta": 300.0, "rope_type": "default"}),
        ("phi3", {"rope_theta": 300.0, "partial_rotary_factor": 0.5},
         {"rope_theta": 300.0, "rope_type": "default", "partial_rotary_factor": 0.5}),
        ("gpt_neox", {"rotary_emb_base": 300, "rotary_pct": 0.5},
         {"rope_theta": 300, "rope_type": "default", "partial_rotary_factor": 0.5}),
        ("gemma3_text", {"rope_theta": 700.0, "rope_local_base_freq": 90.0},
         {"full_attention": {"rope_theta": 700.0, "rope_type": "default"},
          "sliding_attention": {"rope_theta": 90.0, "rope_type": "default"}}),
    ],
)  # fmt: skip
def test_rope_parameters_of_transformers_5_are_understood(
    model: str, options: dict[str, Any], parameters: dict[str, Any], tmp_path: Path
) -> None:
    before = write_tiny(tmp_path / "before", model, "sigmoid", **options)
    expected = [oracle(before, "sigmoid", prompt, steps) for prompt, steps in TRAJECTORIES]
    old = {*options, "rope_theta", "rope_scaling"}
    source = _rewritten(
        before, tmp_path / "source",
        lambda config: {key: v for key, v in config.items() if key not in old} | {"rope_parameters": parameters},
    )  # fmt: skip
    assert_same(of_reference(source, "sigmoid", tmp_path), expected)
    assert_same(of_bundle(source, "sigmoid", tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rope_theta": 10.0, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
            "says rope_theta 10.0",
        ),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "says rope_scaling"),
        (
            {"rope_theta": None, "rope_parameters": {"a": {"rope_theta": 1.0}, "b": {"rope_theta": 2.0}}},
            "differ by type of layer",
        ),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1.0, "mscale": 2}}, "mscale"),
        ({"rope_parameters": "default"}, "not an object"),
    ],
)
def test_rope_parameters_without_an_old_equivalent_are_refused(
    tiny_llama: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    source = _rewritten(tiny_llama("sigmoid"), tmp_path / "source", lambda config: config | change)
    refused_by_both(source, "sigmoid", tmp_path, said)


def refused_by_both(source: Path, head: str, folder: Path, *said: str) -> None:
    """`export` and `bench reference` refuse with the same sentence, and write nothing."""
    for run_it in (lambda: of_bundle(source, head, folder / "out"), lambda: of_reference(source, head, folder)):
        with pytest.raises(CheckpointError) as caught:
            run_it()
        assert any(part in str(caught.value) for part in said), caught.value
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir() if path != source) == ["data.jsonl"]


def _edit_weights(source: Path, target: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(source, target))
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("head", ["sigmoid", "token_class", "token_pair"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda weights: weights.pop(DOWN), f"lacks {DOWN}"),
        (lambda weights: weights.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda weights: weights.update({DOWN: torch.zeros(64, 127)}), f"another shape than config.json says: {DOWN}"),
        (
            lambda weights: weights.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}),
            "holds model.layers.0.self_attn.q_norm.weight",
        ),
        (lambda weights: [weights.pop(name) for name in list(weights) if ".layers." in name], "and 14 more"),
    ],
)
def test_weights_are_complete_or_refused(
    no_family: Callable[[str], Path], tmp_path: Path, edit: Callable[[dict[str, Any]], object], said: str, head: str
) -> None:
    source = _edit_weights(no_family(head), tmp_path / "source", edit)
    refused_by_both(source, head, tmp_path, said)


def test_an_output_matrix_is_needed_by_token_pairs_only(tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
    """What TRL saves has none."""
    expected = [oracle(tiny_llama("token_class"), "token_class", *trajectory) for trajectory in TRAJECTORIES]
    source = _edit_weights(
        tiny_llama("token_class"), tmp_path / "source", lambda weights: weights.pop("lm_head.weight")
    )
    assert_same(of_bundle(source, "token_class", tmp_path / "out"), expected)
    assert_same(of_reference(source, "token_class", tmp_path), expected)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "reference.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        of_reference(source, "token_pair", tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        of_bundle(source, "token_pair", tmp_path / "out")


@pytest.mark.parametrize("head", ["sigmoid", "token_pair"])
def test_an_output_matrix_that_is_tied_wins_over_a_stale_one(
    tiny_llama: Callable[[str], Path], tmp_path: Path, head: str
) -> None:
    source = _rewritten(tiny_llama(head), tmp_path / "source", lambda config: config | {"tie_word_embeddings": True})
    expected = [oracle(source, head, *trajectory) for trajectory in TRAJECTORIES]
    assert_same(of_bundle(source, head, tmp_path / "out"), expected)
    assert_same(of_reference(source, head, tmp_path), expected)


def test_names_without_the_prefix_model_are_read(tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
    """As AutoModel saves a decoder."""
    expected = [oracle(tiny_llama("sigmoid"), "sigmoid", *trajectory) for trajectory in TRAJECTORIES]

    def shorten(weights: dict[str, Any]) -> None:
        del weights["lm_head.weight"]
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)

    source = _edit_weights(tiny_llama("sigmoid"), tmp_path / "source", shorten)
    assert_same(of_bundle(source, "sigmoid", tmp_path / "out"), expected)
    assert_same(of_reference(source, "sigmoid", tmp_path), expected)


def test_longrope_ends_at_its_original_positions(tmp_path: Path) -> None:
    """Beyond them, every token's factors change, also those of closed steps."""
    scaling = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    source = write_tiny(
        tmp_path / "source", "phi3", "sigmoid", rope_scaling=scaling, original_max_position_embeddings=100
    )
    expected = [oracle(source, "sigmoid", *trajectory) for trajectory in TRAJECTORIES]
    assert_same(of_bundle(source, "sigmoid", tmp_path / "out"), expected)
    assert read_manifest(tmp_path / "out").context_length == 100
    assert_same(of_reference(source, "sigmoid", tmp_path), expected)
    header = json.loads((tmp_path / "reference.jsonl").read_text().splitlines()[0])
    assert header["context_length"] == 100


# what is not a decoder in full precision


def _lora(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


def _lora_next_to_a_model(folder: Path) -> None:
    """transformers would load the adapter's base model in place of the weights that are here."""
    (folder / "adapter_config.json").write_text("{}")


def _bin_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _labels(count: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["score.weight"], weights["score.bias"] = torch.ones(count, 64), torch.ones(count)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _config_of(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: set_config(folder, **changes) and None


def _nested(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_lora, "a LoRA adapter"),
        (_lora_next_to_a_model, "a LoRA adapter"),
        (_bin_only, "pytorch_model.bin"),
        (_labels(1), "score|label|outcome"),
        (_labels(3), "score|label|classes"),
        (_config_of(quantization_config={"quant_method": "gptq", "bits": 4}), "is quantized (gptq"),
        (_config_of(quantization_config={"quant_method": "awq"}), "is quantized (awq"),
        (
            _config_of(quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"}),
            "is quantized (bitsandbytes",
        ),
        (_config_of(quantization_config={"quant_method": "fp8"}), "is quantized (fp8"),
        (_config_of(auto_map={"AutoModel": "modeling_x.OwnModel"}), "auto_map asks for code of its own"),
        (_config_of(model_type="own", auto_map={"AutoConfig": "c.OwnConfig"}), "does not know model_type 'own'"),
        (_nested, "holds its decoder in text_config"),
    ],
)
def test_what_is_not_a_plain_decoder_is_named(
    tiny_llama: Callable[[str], Path], tmp_path: Path, edit: Callable[[Path], None], said: str
) -> None:
    source = Path(shutil.copytree(tiny_llama("token_class"), tmp_path / "source"))
    edit(source)
    refused_by_both(source, "token_class", tmp_path, *said.split("|"))


def test_a_class_of_a_decoder_with_a_head_is_read(tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
    """The authors' 7B names code of its own; its weights are a plain decoder's."""
    names = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.Qwen2ForProcessRewardModel"}
    source = _rewritten(tiny_llama("two_class"), tmp_path / "source", lambda config: config | {"auto_map": names})
    expected = [oracle(tiny_llama("two_class"), "two_class", *trajectory) for trajectory in TRAJECTORIES]
    assert_same(of_reference(source, "two_class", tmp_path), expected)


def test_another_file_of_weights_in_the_folder_changes_nothing(
    tiny_llama: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    source = Path(shutil.copytree(tiny_llama("token_class"), tmp_path / "source"))
    save_file(
        {"score.weight": torch.ones(2, 64), "score.0.weight": torch.ones(64, 64)}, source / "old_head.safetensors"
    )
    expected = [oracle(tiny_llama("token_class"), "token_class", *trajectory) for trajectory in TRAJECTORIES]
    rewards, said = outcome(lambda: of_reference(source, "token_class", tmp_path))
    assert_same(rewards, expected if rewards else [])
    assert rewards or "old_head.safetensors" in said
