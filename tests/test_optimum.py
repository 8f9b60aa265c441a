"""Decoders exported through optimum: rewards are those of torch, for every head and four models, one of no family."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHAT_TEMPLATE, write_reward_head, write_tokenizer

import edge_prm
from edge_prm.encode import Encoder
from edge_prm.errors import CheckpointError, ContextLengthError, InputError, UnsupportedArchitectureError
from edge_prm.manifest import read_manifest
from edge_prm.trajectory import Trajectory

REASON = 'optimum is not installed: pip install "edge-prm[optimum]"'
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("optimum.exporters.onnx", reason=REASON)

from edge_prm_export import export  # noqa: E402

PROMPT = "How many eggs does she sell at the market?"
STEPS = ["Janet has 16 eggs a day.", "She eats 3 of them 😀.", "16 - 3 = 14", "The answer is 14."]
MODELS = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen3": "Qwen3Config", "smollm3": "SmolLM3Config"}
NO_FAMILY = "smollm3"
"""A decoder that only optimum exports."""
HEADS = ("sigmoid", "two_class", "token_class", "token_pair")
TOLERANCES = {"fp32": 2e-5, "int8": 0.08}
PAIR = ("+", "-")


def write_foreign(folder: Path, model: str, head: str, **options: Any) -> Path:
    """A tiny random checkpoint as transformers saves it, with one of our heads."""
    shapes = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 16,
        "initializer_range": 0.25, "num_labels": 2, "sliding_window": None, "tie_word_embeddings": False,
        "pad_token_id": 0,
    } | options  # fmt: skip
    torch.manual_seed(len(model))
    config = getattr(transformers, MODELS[model])(**shapes)
    kind = transformers.AutoModelForTokenClassification if head == "token_class" else transformers.AutoModelForCausalLM
    net = kind.from_config(config)
    state = net.state_dict()
    for name in state:
        if "norm" in name:
            state[name] = 1 + 0.2 * torch.randn_like(state[name])
        if "lm_head" in name or name.startswith("score."):
            state[name] *= 0.3  # judgements that are not all certain
    if head == "two_class":
        state |= {"score.0.weight": torch.randn(64, 64) / 8, "score.0.bias": torch.randn(64) / 8}
        state |= {"score.2.weight": torch.randn(2, 64) / 5, "score.2.bias": torch.randn(2) / 8}
    net.save_pretrained(folder, state_dict=state)
    if head == "sigmoid":
        weight = (torch.randn(1, 64) / 6).numpy()
        write_reward_head(folder / "reward_head.pt", weight, np.array([0.1], dtype=np.float32))
    write_tokenizer(folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def kernels_saturate() -> bool:
    """Whether 8-bit products overflow here: x86 without the VNNI instructions needs bundles of reduced range."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in text


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """(model, head, recipe) -> checkpoint and bundle; not to be changed."""
    made: dict[tuple[str, ...], Path] = {}

    def make(model: str, head: str, recipe: str) -> tuple[Path, Path]:
        if (model, head) not in made:
            made[model, head] = write_foreign(tmp_path_factory.mktemp("foreign") / f"{model}-{head}", model, head)
        if (model, head, recipe) not in made:
            pair = PAIR if head == "token_pair" else None
            folder = tmp_path_factory.mktemp("bundle") / "out"
            made[model, head, recipe] = export(
                str(made[model, head]), folder, recipe=recipe, token_pair=pair, exporter="optimum",
                reduce_range=recipe == "int8" and kernels_saturate(),
            )  # fmt: skip
        return made[model, head], made[model, head, recipe]

    return make


def torch_rewards(checkpoint: Path, head: str, ids: list[int], read_at: list[int]) -> np.ndarray:
    """The head's formula on transformers' hidden states; for a pair, on its logits."""
    from safetensors.torch import load_file

    inputs = torch.tensor([ids])
    with torch.no_grad():
        if head == "token_pair":
            net = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
            tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
            good, bad = tokenizer.convert_tokens_to_ids(list(PAIR))
            return torch.softmax(net(inputs).logits[0, read_at][:, [good, bad]], -1)[:, 0].numpy()
        net = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
        hidden = net(inputs).last_hidden_state[0, read_at]
        if head == "sigmoid":
            state = torch.load(checkpoint / "reward_head.pt", weights_only=True)
            return torch.sigmoid(hidden @ state["weight"].T + state["bias"])[:, 0].numpy()
        weights = load_file(checkpoint / "model.safetensors")
        if head == "two_class":
            hidden = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        name = "score.2" if head == "two_class" else "score"
        return torch.softmax(hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], -1)[:, 1].numpy()


@pytest.mark.parametrize("recipe", TOLERANCES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", MODELS)
def test_rewards_are_those_of_torch(
    foreign: Callable[..., tuple[Path, Path]], model: str, head: str, recipe: str
) -> None:
    checkpoint, bundle = foreign(model, head, recipe)
    manifest = read_manifest(bundle)
    assert (manifest.backend, manifest.head.kind, manifest.architecture.model_type) == ("optimum", head, model)
    encoded = Encoder(bundle / "tokenizer.json", manifest).encode(Trajectory.of(PROMPT, STEPS))
    expected = torch_rewards(checkpoint, head, encoded.ids.tolist(), list(encoded.read_at))
    assert expected.std() > 0.02
    with edge_prm.load(bundle) as prm:
        rewards = np.array(prm.score(PROMPT, STEPS).rewards)
    assert np.abs(rewards - expected).max() <= TOLERANCES[recipe]


def test_int8_is_int8(foreign: Callable[..., tuple[Path, Path]]) -> None:
    """No weight of a multiplication and no embedding is left in fp32."""
    import onnx

    sizes = {}
    for recipe in TOLERANCES:
        _, bundle = foreign("llama", "sigmoid", recipe)
        sizes[recipe] = (bundle / "model.onnx.data").stat().st_size
        graph = onnx.load(str(bundle / "model.onnx"), load_external_data=False).graph
        matrices = [tensor for tensor in graph.initializer if tensor.data_type == 1 and len(tensor.dims) == 2]
        large = [tensor.name for tensor in matrices if min(tensor.dims) > 2 and "hadamard" not in tensor.name]
        integers = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(integers) == (0 if recipe == "fp32" else 2 * (7 + 3))  # q, k and v in two terms
        assert (large == []) == (recipe == "int8")
        assert "logits" not in {output.name for output in graph.output}
    assert sizes["int8"] < 0.7 * sizes["fp32"]  # in so small a model, alignment counts


@pytest.mark.parametrize("recipe", TOLERANCES)
def test_rewards_hardly_depend_on_how_they_are_asked_for(
    foreign: Callable[..., tuple[Path, Path]], recipe: str
) -> None:
    _, bundle = foreign("qwen3", "sigmoid", recipe)
    limit = 1e-5 if recipe == "fp32" else read_manifest(bundle).fidelity.stream_tolerance  # type: ignore[union-attr]
    with edge_prm.load(bundle, threads=1) as prm:
        whole = prm.score(PROMPT, STEPS)
        with prm.session(PROMPT) as session:
            pushed = [session.push(step, last=step is STEPS[-1]) for step in STEPS]
            other = session.branch()
            session.trim(1)
            again = [session.push(step, last=step is STEPS[-1]) for step in STEPS[1:]]
            assert other.rewards == tuple(pushed)
            assert session.computed <= whole.tokens * 2
        ranking = prm.rank(PROMPT, [STEPS, STEPS[:2], [*STEPS[:3], "14"]])
    assert np.abs(np.subtract(pushed, whole.rewards)).max() <= limit
    assert np.abs(np.subtract([pushed[0], *again], whole.rewards)).max() <= limit
    assert np.abs(np.subtract(ranking.rewards[0], whole.rewards)).max() <= limit
    assert ranking.computed < sum(ranking.tokens)


def test_check_trusts_it(foreign: Callable[..., tuple[Path, Path]]) -> None:
    from edge_prm.bundle import open_bundle
    from edge_prm.check import check_bundle

    result = check_bundle(open_bundle(foreign("mistral", "token_class", "int8")[1], verify_all=True))
    assert result.trusted, result.sentence


def test_a_chat_of_judged_turns_is_read_as_rlhflow_does(foreign: Callable[..., tuple[Path, Path]]) -> None:
    """One conversation for each step, the judge's answers filled in; the probability of `+` where it would answer."""
    checkpoint, bundle = foreign("llama", "token_pair", "fp32")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"), chat_template=CHAT_TEMPLATE
    )
    expected, conversation = [], []
    for index, step in enumerate(STEPS):
        conversation.append({"role": "user", "content": f"{PROMPT} {step}" if index == 0 else step})
        asked = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        expected.append(torch_rewards(checkpoint, "token_pair", asked, [len(asked) - 1])[0])
        conversation.append({"role": "assistant", "content": "+"})
    with edge_prm.load(bundle) as prm:
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=TOLERANCES["fp32"])


def test_a_tag_behind_each_step_is_read_as_math_shepherd_does(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    checkpoint, _ = foreign("mistral", "token_pair", "fp32")
    options = {"token_pair": PAIR, "separator": " ки", "between": " ", "after_step": "\n", "exporter": "optimum"}
    bundle = export(str(checkpoint), tmp_path / "out", recipe="fp32", **options)  # type: ignore[arg-type]
    text = PROMPT + " " + "\n".join(f"{step} ки" for step in STEPS)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    ids = tokenizer(text)["input_ids"]
    tag = tokenizer(" ки")["input_ids"][-1]
    read_at = [at for at, id_ in enumerate(ids) if id_ == tag]
    assert len(read_at) == len(STEPS)
    with edge_prm.load(bundle) as prm:
        found = prm.score(PROMPT, STEPS)
    assert found.tokens == len(ids)
    expected = torch_rewards(checkpoint, "token_pair", ids, read_at)
    assert found.rewards == pytest.approx(expected.tolist(), abs=TOLERANCES["fp32"])
    assert found.score == min(found.rewards)


def test_qwen2_goes_through_optimum_when_asked(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Two exporters that share no graph agree."""
    made = [
        export(str(checkpoint_of("sigmoid")), tmp_path / name, recipe="fp32", exporter=name)
        for name in ("native", "optimum")
    ]
    assert [read_manifest(folder).backend for folder in made] == ["onnx", "optimum"]
    found = []
    for folder in made:
        with edge_prm.load(folder) as prm:
            found.append(prm.score(PROMPT, STEPS).rewards)
    assert found[0] == pytest.approx(found[1], abs=3e-5)


def test_a_decoder_of_no_family_goes_through_optimum_by_itself(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    checkpoint, bundle = foreign(NO_FAMILY, "sigmoid", "fp32")
    chosen = export(str(checkpoint), tmp_path / "out", recipe="fp32")
    assert [read_manifest(folder).backend for folder in (bundle, chosen)] == ["optimum", "optimum"]
    files = [(folder / "model.onnx.data").read_bytes() for folder in (bundle, chosen)]
    assert files[0] == files[1]


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_a_bias_that_the_native_exporter_does_not_know_goes_through_optimum(tmp_path: Path, key: str) -> None:
    source = write_foreign(tmp_path / "source", "llama", "sigmoid", **{key: True})
    with pytest.raises(UnsupportedArchitectureError, match=f"{key} in llama"):
        export(str(source), tmp_path / "out", recipe="fp32", exporter="native")
    bundle = export(str(source), tmp_path / "out", recipe="fp32")
    manifest = read_manifest(bundle)
    assert manifest.backend == "optimum"
    encoded = Encoder(bundle / "tokenizer.json", manifest).encode(Trajectory.of(PROMPT, STEPS))
    expected = torch_rewards(source, "sigmoid", encoded.ids.tolist(), list(encoded.read_at))
    with edge_prm.load(bundle) as prm:
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected.tolist(), abs=TOLERANCES["fp32"])


def test_a_pair_of_tokens_judges_on_the_native_graph_too(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = export(str(checkpoint_of("sigmoid")), tmp_path / "out", recipe="fp32", token_pair=PAIR)
    manifest = read_manifest(folder)
    assert (manifest.backend, manifest.head.tokens, manifest.head.default_aggregate) == ("onnx", PAIR, "min")
    encoded = Encoder(folder / "tokenizer.json", manifest).encode(Trajectory.of(PROMPT, STEPS))
    expected = torch_rewards(checkpoint_of("sigmoid"), "token_pair", encoded.ids.tolist(), list(encoded.read_at))
    with edge_prm.load(folder) as prm:
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected.tolist(), abs=3e-5)


@pytest.mark.parametrize("exporter", ["native", "optimum"])
def test_a_sliding_window_bounds_the_context(tmp_path: Path, exporter: str) -> None:
    """Within its window, attention is full; past it, the graph would not be the model's."""
    source = write_foreign(tmp_path / "source", "mistral", "sigmoid", sliding_window=200)
    bundle = export(str(source), tmp_path / "out", recipe="fp32", exporter=exporter)
    assert read_manifest(bundle).context_length == 200
    with edge_prm.load(bundle) as prm:
        encoded = Encoder(bundle / "tokenizer.json", prm.manifest).encode(Trajectory.of(PROMPT, STEPS))
        expected = torch_rewards(source, "sigmoid", encoded.ids.tolist(), list(encoded.read_at))
        assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected.tolist(), abs=TOLERANCES["fp32"])
        with pytest.raises(ContextLengthError):
            prm.score(PROMPT, STEPS * 12)


def test_a_first_token_that_the_tokenizer_adds_is_kept(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, processors

    source = Path(shutil.copytree(foreign("llama", "sigmoid", "fp32")[0], tmp_path / "source"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    start = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    ids = tokenizer.encode(PROMPT + "\n\n".join(STEPS)).ids
    bundle = export(str(source), tmp_path / "out", recipe="fp32", exporter="optimum")
    with edge_prm.load(bundle) as prm:
        found = prm.score(PROMPT, STEPS)
    assert (found.tokens, ids[0]) == (len(ids), start)
    assert found.rewards[-1] == pytest.approx(torch_rewards(source, "sigmoid", ids, [len(ids) - 1])[0], abs=2e-5)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_start|>", special_tokens=[("<|im_start|>", start)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="adds 1 tokens to every text, and not one in front"):
        export(str(source), tmp_path / "other", recipe="fp32")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"exporter": "native"}, UnsupportedArchitectureError, "model_type 'smollm3'"),
        ({"gguf": True}, UnsupportedArchitectureError, "model_type 'smollm3'"),
        ({"gguf": True, "exporter": "optimum"}, InputError, "optimum writes ONNX bundles"),
        ({"exporter": "torch"}, InputError, "exporter 'torch' is not known"),
        ({"token_pair": ("nothing", "-")}, CheckpointError, "no token 'nothing'; name the right one with --good-token"),
        ({"between": "x"}, InputError, "describe a token_pair head"),
        ({"token_pair": PAIR, "after_step": "x"}, InputError, "after_step goes with separator"),
        (
            {"token_pair": PAIR, "separator": " !", "after_step": "\n\n"},
            InputError,
            "share a token; choose an after_step",
        ),
    ],
)
def test_what_cannot_be_is_named(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path, options: dict[str, Any], error: type, said: str
) -> None:
    if options.get("gguf"):
        from conftest import need_engine

        need_engine("gguf")
    with pytest.raises(error) as caught:
        export(str(foreign(NO_FAMILY, "sigmoid", "fp32")[0]), tmp_path / "out", **options)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_optimum_its_extra_is_named(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_prm.extras._installed", lambda name: "optimum" not in name)
    with pytest.raises(UnsupportedArchitectureError, match=r"other decoders with optimum .*edge-prm\[optimum\]"):
        export(str(foreign(NO_FAMILY, "sigmoid", "fp32")[0]), tmp_path / "out")


def test_data_outside_the_graph_is_brought_along(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As optimum leaves a model of more than 2 GB: every tensor, those of constants too, in a file of its own."""
    import onnx

    import edge_prm_export.optimum.trace as way

    source, expected = foreign("llama", "sigmoid", "int8")
    trace = way._trace

    def trace_outside(net: Any, checkpoint: Any, target: Path) -> None:
        trace(net, checkpoint, target)
        model = onnx.load(str(target / "model.onnx"))
        options = {"save_as_external_data": True, "size_threshold": 0, "convert_attribute": True}
        onnx.save_model(model, str(target / "model.onnx"), location="model.onnx_data", **options)

    monkeypatch.setattr(way, "_trace", trace_outside)
    folder = export(str(source), tmp_path / "out", reduce_range=kernels_saturate(), exporter="optimum")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in expected.iterdir())
    found = []
    for bundle in (expected, folder):
        with edge_prm.load(bundle) as prm:
            found.append(prm.score(PROMPT, STEPS).rewards)
    assert found[0] == found[1]


def test_what_optimum_cannot_trace_is_one_sentence(
    foreign: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(foreign("llama", "sigmoid", "fp32")[0], tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(CheckpointError, match="does not know model_type 'unheard_of'") as caught:
        export(str(source), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nodes_are_known_by_their_outputs(foreign: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    """Another protobuf gives another wrapper of a node at each access."""
    import onnx

    import edge_prm_export.optimum.trace as way
    from edge_prm_export.checkpoint.files import open_checkpoint
    from edge_prm_export.optimum.rewrite import Rewriter
    from edge_prm_export.optimum.torch_checkpoint import load_causal_lm

    checkpoint = open_checkpoint(str(foreign("llama", "sigmoid", "fp32")[0]), native=False)
    way._trace(load_causal_lm(checkpoint), checkpoint, tmp_path / "traced")
    model = onnx.load(str(tmp_path / "traced" / "model.onnx"), load_external_data=False)

    class Graph:
        initializer, input, output = model.graph.initializer, model.graph.input, model.graph.output

        @property
        def node(self) -> list[Any]:
            return [type(node).FromString(node.SerializeToString()) for node in model.graph.node]

    class Model:
        graph, opset_import = Graph(), model.opset_import

    rewriters = [Rewriter(each, tmp_path / "traced", "tiny") for each in (model, Model())]
    needed = [[node.name for node in each._needed(each._cache_outputs())] for each in rewriters]
    assert len(needed[0]) > 50
    assert needed[0] == needed[1]
