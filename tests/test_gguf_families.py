"""GGUF bundles of each decoder family: rewards of transformers, files that other tools read, hostile files refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need_engine
from hypothesis import given, settings
from hypothesis import strategies as st

need_engine("gguf")
from gguf_families import (  # noqa: E402
    ARCHITECTURES,
    FAMILIES,
    HEADS,
    LLAMA3_SCALING,
    PAIR,
    as_llama3,
    torch_rewards,
    write_family,
    write_sentencepiece,
)
from test_gguf import DAMAGE  # noqa: E402
from tiny import opened, write_tokenizer  # noqa: E402

import edge_prm  # noqa: E402
from edge_prm.backends.gguf.checks import read_head  # noqa: E402
from edge_prm.backends.gguf.layout import LAYOUTS  # noqa: E402
from edge_prm.backends.gguf.llama_cpp import capture_log  # noqa: E402
from edge_prm.encode import Encoder  # noqa: E402
from edge_prm.errors import BundleIntegrityError, UnsupportedArchitectureError  # noqa: E402
from edge_prm.manifest import read_manifest  # noqa: E402
from edge_prm.trajectory import Trajectory  # noqa: E402
from edge_prm_export import export  # noqa: E402

PROMPT = "How many eggs does she sell at the market?"
STEPS = ["Janet has 16 eggs a day.", "She eats 3 of them: 16 - 3 = 13", "Then add: 2 + 12 = 14. The answer is 13!"]
LIMIT = 2e-3


@pytest.fixture(scope="module")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(family, head) -> checkpoint; not to be changed."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, head: str = "sigmoid") -> Path:
        if (family, head) not in made:
            made[family, head] = write_family(tmp_path_factory.mktemp("family") / f"{family}-{head}", family, head)
        return made[family, head]

    return make


@pytest.fixture(scope="module")
def bundle_of_family(tmp_path_factory: pytest.TempPathFactory, family_of: Callable[..., Path]) -> Callable[..., Path]:
    """(family, head, type) -> GGUF bundle; not to be changed."""
    made: dict[tuple[str, str, str], Path] = {}

    def make(family: str, head: str = "sigmoid", type_: str = "F32") -> Path:
        if (family, head, type_) not in made:
            folder = tmp_path_factory.mktemp("bundle") / f"{family}-{head}-{type_}"
            options = PAIR if head == "token_pair" else {}
            made[family, head, type_] = export(
                str(family_of(family, head)), folder, gguf=True, gguf_type=type_, **options
            )
        return made[family, head, type_]

    return make


def rewards_of(bundle: Path, checkpoint: Path, head: str) -> tuple[np.ndarray, np.ndarray]:
    """The bundle's rewards and those of transformers on the same token ids."""
    encoded = Encoder(bundle / "tokenizer.json", read_manifest(bundle)).encode(Trajectory.of(PROMPT, STEPS))
    assert len(encoded.ids) > 40
    with edge_prm.load(bundle, threads=1) as prm:
        found = np.array(prm.score(PROMPT, STEPS).rewards)
    return found, torch_rewards(checkpoint, head, encoded.ids.tolist(), encoded.read_at)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_those_of_transformers(
    family_of: Callable[..., Path], bundle_of_family: Callable[..., Path], family: str, head: str
) -> None:
    found, expected = rewards_of(bundle_of_family(family, head), family_of(family, head), head)
    assert np.std(expected) > 2 * LIMIT
    assert np.abs(found - expected).max() <= LIMIT


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2"])
@pytest.mark.parametrize("rotate", [False, True])
def test_eight_bits_stay_within_the_tolerance_of_the_recipe(
    family_of: Callable[..., Path], tmp_path: Path, family: str, rotate: bool
) -> None:
    bundle = export(str(family_of(family)), tmp_path / "out", gguf=True, gguf_type="Q8_0", rotate=rotate)
    fidelity = read_manifest(bundle).fidelity
    assert fidelity is not None
    assert fidelity.max_difference <= fidelity.tolerance
    found, expected = rewards_of(bundle, family_of(family), "sigmoid")
    assert np.abs(found - expected).max() <= fidelity.tolerance


@pytest.mark.parametrize("family", ["qwen3", "llama3", "mistral"])
def test_gptq_brings_four_bits_closer_in_every_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """GPTQ on rows in another order than the file's would make the file worse.

    The checkpoint is wide enough for K-quants. Random weights of this size may be outside the recipe's tolerance.
    """
    from edge_prm_export.gguf import bundle as gguf_bundle

    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    source = write_family(tmp_path / "source", family, head_dim=64, initializer_range=0.07, **wide)
    means = []
    for name in ("with", "without"):
        options: dict[str, Any] = {"gguf": True, "gguf_type": "Q4_K_M", "rotate": False}
        fidelity = read_manifest(export(str(source), tmp_path / name, **options)).fidelity
        assert fidelity is not None
        means.append(fidelity.mean_difference)
        monkeypatch.setattr(gguf_bundle, "compensate", lambda *_: iter(()))
    assert means[0] < means[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_pushed_steps_have_the_rewards_of_one_shot(bundle_of_family: Callable[..., Path], family: str) -> None:
    with edge_prm.load(bundle_of_family(family), threads=1) as prm, prm.session(PROMPT) as session:
        pushed = [session.push(step, last=step is STEPS[-1]) for step in STEPS]
        assert np.abs(np.subtract(pushed, prm.score(PROMPT, STEPS).rewards)).max() <= LIMIT


def test_the_scaling_of_llama_3_changes_rewards(family_of: Callable[..., Path], tmp_path: Path) -> None:
    """A file without the factors would be a model of another wavelength."""
    source = family_of("llama3")
    plain = write_family(tmp_path / "plain", "llama3", rope_scaling=None)
    assert (plain / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    bundle = export(str(plain), tmp_path / "out", gguf=True, recipe="fp32")
    found, expected = rewards_of(bundle, source, "sigmoid")
    assert np.abs(found - expected).max() > 10 * LIMIT


def test_scaled_rotary_embeddings_of_another_family_are_refused(family_of: Callable[..., Path], tmp_path: Path) -> None:
    """llama.cpp reads the factors for `llama` only."""
    source = write_family(tmp_path / "source", "qwen3", rope_scaling=LLAMA3_SCALING)
    with pytest.raises(UnsupportedArchitectureError, match="scaled rotary embeddings of qwen3 in GGUF"):
        export(str(source), tmp_path / "out", gguf=True)
    assert not (tmp_path / "out").exists()


# other tools


@pytest.mark.parametrize("family", FAMILIES)
def test_any_tool_finds_an_ordinary_model_of_its_architecture(
    bundle_of_family: Callable[..., Path], family: str
) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(bundle_of_family(family) / "model.gguf")
    tensors = {tensor.name for tensor in reader.tensors}
    assert reader.fields["general.architecture"].contents() == ARCHITECTURES[family]
    assert ("rope_freqs.weight" in tensors) == (family == "llama3")
    assert ("blk.0.attn_q.bias" in tensors) == (family == "qwen2")
    assert ("blk.0.attn_q_norm.weight" in tensors) == (family == "qwen3")
    assert "output.weight" not in tensors


def test_the_output_matrix_of_a_llama_file_is_its_embedding(
    family_of: Callable[..., Path], bundle_of_family: Callable[..., Path]
) -> None:
    """A head with one output is a row of it: its logit gives the reward without this package."""
    import llama_cpp
    from gguf import GGUFReader

    folder = bundle_of_family("llama3")
    fields = GGUFReader(folder / "model.gguf").fields
    row, residual, scale, bias = (
        fields[f"edge_prm.head.{name}"].contents() for name in ("row", "residual_row", "scale", "bias")
    )
    encoded = Encoder(folder / "tokenizer.json", read_manifest(folder)).encode(Trajectory.of(PROMPT, STEPS))
    model = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=256, logits_all=True, verbose=False)
    model.eval(encoded.ids.tolist())
    logits = np.array([model.scores[at, [row, residual]] for at in encoded.read_at])
    rewards = 1 / (1 + np.exp(-((logits[:, 0] + logits[:, 1] / 128) / scale + bias)))
    expected = torch_rewards(family_of("llama3"), "sigmoid", encoded.ids.tolist(), encoded.read_at)
    assert np.abs(rewards - expected).max() <= LIMIT


TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
        st.sampled_from(["eggs", " 123456", "  two", "\n\n", "She's", " ки", "<extra_0>", "é", "😀", "\t", "=12."]),
    ),
    min_size=1,
    max_size=6,
).map("".join)


class _Vocabulary:
    """llama.cpp's tokenizer of a file."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._llama = llama_cpp
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        with capture_log():
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)

    def ids(self, text: str) -> list[int]:
        raw = text.encode()
        found = (self._llama.llama_token * (len(raw) + 8))()
        count = self._llama.llama_tokenize(self._vocabulary, raw, len(raw), found, len(found), False, True)
        return list(found[:count])


_loaded: dict[str, tuple[_Vocabulary, Any]] = {}


@pytest.mark.parametrize("family", ["qwen3", "llama3", "mistral"])
@settings(max_examples=150)
@given(text=TEXTS)
def test_llama_cpp_gives_a_text_the_tokens_of_tokenizer_json(
    bundle_of_family: Callable[..., Path], family: str, text: str
) -> None:
    from tokenizers import Tokenizer, normalizers

    if family not in _loaded:
        folder = bundle_of_family(family)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        _loaded[family] = _Vocabulary(folder / "model.gguf"), tokenizer
    vocabulary, tokenizer = _loaded[family]
    if family == "qwen3":  # llama.cpp has no NFC
        text = normalizers.NFC().normalize_str(text)
    assert vocabulary.ids(text) == tokenizer.encode(text, add_special_tokens=False).ids


def _of_model(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    fields = GGUFReader(path / "model.gguf").fields
    return {key: fields[key].contents() for key in fields if key.startswith("tokenizer.ggml.")}


@pytest.mark.parametrize(
    ("family", "model", "pre"),
    [("qwen2", "gpt2", "qwen2"), ("llama3", "gpt2", "llama-bpe"), ("mistral", "llama", None)],
)
def test_a_vocabulary_is_named_by_what_tokenizer_json_does(
    bundle_of_family: Callable[..., Path], family: str, model: str, pre: str | None
) -> None:
    fields = _of_model(bundle_of_family(family))
    assert (fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")) == (model, pre)
    assert len(fields["tokenizer.ggml.tokens"]) == 640
    assert fields["tokenizer.ggml.add_bos_token"] is False


def _another_regex(path: Path) -> None:
    write_tokenizer(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}|\s+|."
    path.write_text(json.dumps(data), encoding="utf-8")


def _merges_used_in_llama3(path: Path) -> None:
    write_tokenizer(path)
    as_llama3(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["ignore_merges"] = False
    path.write_text(json.dumps(data), encoding="utf-8")


def _metaspace(path: Path) -> None:
    write_sentencepiece(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    path.write_text(json.dumps(data), encoding="utf-8")


def _a_merge_less(path: Path) -> None:
    write_sentencepiece(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    counts: dict[str, int] = {}
    for first, second in data["model"]["merges"]:
        counts[first + second] = counts.get(first + second, 0) + 1
    more = next(pair for pair in data["model"]["merges"] if counts["".join(pair)] > 1)
    data["model"]["merges"].remove(more)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("change", [_another_regex, _merges_used_in_llama3, _metaspace, _a_merge_less])
def test_a_vocabulary_that_llama_cpp_would_misread_is_left_out(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Other tools then take token ids only; the rewards are the same."""
    source = write_family(tmp_path / "source", "llama")
    change(source / "tokenizer.json")
    bundle = export(str(source), tmp_path / "out", gguf=True, recipe="fp32")
    assert _of_model(bundle) == {"tokenizer.ggml.model": "none"}
    found, expected = rewards_of(bundle, source, "sigmoid")
    assert np.abs(found - expected).max() <= LIMIT


def test_a_token_in_front_of_every_text_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    source = write_family(tmp_path / "source", "mistral")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(source / "tokenizer.json"))
    fields = _of_model(export(str(source), tmp_path / "out", gguf=True))
    assert fields["tokenizer.ggml.add_bos_token"] is True
    names = [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown")]
    assert [fields[name] for name in names] == [1, 2, 0]


# hostile files


def test_the_layout_comes_from_the_manifest(bundle_of_family: Callable[..., Path]) -> None:
    """A file that says of itself that it is another model is refused, whatever it holds."""
    folder = bundle_of_family("llama")
    architecture = read_manifest(folder).architecture
    for model_type, said in (("qwen3", "architecture is 'llama' and should be 'qwen3'"), ("gpt2", "no GGUF layout")):
        with pytest.raises(BundleIntegrityError, match=said):
            read_head(folder / "model.gguf", replace(architecture, model_type=model_type), None)
    assert read_head(folder / "model.gguf", replace(architecture, model_type="mistral"), None)


@pytest.mark.parametrize("family", ["qwen3", "llama3", "mistral"])
def test_no_damage_ends_the_process(bundle_of_family: Callable[..., Path], tmp_path: Path, family: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", DAMAGE, str(bundle_of_family(family, type_="Q8_0")), str(tmp_path), "90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert outcomes["refused"] > 20
    assert outcomes["ran"] > 10


def test_every_family_with_a_layout_is_one_that_the_exporter_knows(family_of: Callable[..., Path]) -> None:
    from edge_prm_export.checkpoint.config import FAMILIES as KNOWN

    assert set(LAYOUTS) == set(KNOWN)
    for family in FAMILIES:
        spec, layout = opened(family_of(family)).spec, LAYOUTS[opened(family_of(family)).spec.family]
        assert (layout.qkv_bias, layout.qk_norm) == (spec.qkv_bias, spec.qk_norm)
