"""Rewards of tiny checkpoints of 14 architectures against plain transformers on the same text, in fp32.

The oracle shares no code with the program: it builds each text by hand, tokenizes it with AutoTokenizer or
apply_chat_template, runs a model of transformers on every prefix by itself, and applies the head by its formula. A
bundle (native or through optimum) and `bench reference` either agree with it or refuse the checkpoint with a reason.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from tiny import CHAT_TEMPLATE, set_config, write_reward_head, write_tokenizer

import edge_prm
from edge_prm.errors import CheckpointError
from edge_prm.manifest import read_manifest

REASON = 'optimum is not installed: pip install "edge-prm[optimum]"'
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("optimum.exporters.onnx", reason=REASON)

import edge_prm_export.optimum_export as way  # noqa: E402
from edge_prm_export import export  # noqa: E402

LIMIT = 1e-4
GOOD, BAD = "+", "-"
TAG = " ки"
SHAPES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 16,
    "initializer_range": 0.2, "num_labels": 2, "tie_word_embeddings": False, "sliding_window": None,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {}),
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {"final_logit_softcapping": 3.0, "sliding_window": 900, "query_pre_attn_scalar": 16}),
    "gemma3_text": ("Gemma3TextConfig", {"sliding_window": 900, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {}),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "olmo2": ("Olmo2Config", {}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True}),
    "gpt_neox": ("GPTNeoXConfig", {"num_key_value_heads": 4}),
    "smollm3": ("SmolLM3Config", {}),
    "glm": ("GlmConfig", {}),
}
HEADS = ("sigmoid", "two_class", "token_class", "token_pair", "chat")
"""`token_pair`: a tag closes a step, as in Math-Shepherd; `chat`: steps are turns, as in RLHFlow."""
NO_TOKEN_CLASS = ("gemma3_text", "granite", "cohere", "olmo2")
"""transformers has no classifier of tokens for these."""
REFUSED = {
    ("gpt_neox", "token_class"): "has no reward head",  # transformers saves it as `classifier`
    ("gpt_neox", "token_pair"): "has no reward head",  # its output matrix is `embed_out`
    ("gpt_neox", "chat"): "has no reward head",
}
"""What is refused, and the words of the sentence that says why."""
OPTIONS: dict[str, dict[str, Any]] = {
    "token_pair": {"token_pair": (GOOD, BAD), "separator": TAG, "between": " ", "after_step": "\n"},
    "chat": {"token_pair": (GOOD, BAD)},
}
TRAJECTORIES = (
    ("How many eggs does she sell at the market?", ("Janet has 16 eggs a day.", "She eats 3 of them.", "The answer is 13!")),
    ("  What is 2 + 3 * 4?  ", ("  3 * 4 = 12  ", "Then add: 2 + 12 = 14 😀 ", " é ")),
    ("\nA farmer has 17 sheep\n\nand buys 5 more \n", ("17 + 5 = 22\nsheep",)),
)  # fmt: skip


def write_tiny(folder: Path, model: str, head: str, **options: Any) -> Path:
    """A tiny random checkpoint as transformers saves it; all heads of a model are on the same decoder."""
    kind, own = ARCHITECTURES[model]
    torch.manual_seed(len(model) + 7)
    config = getattr(transformers, kind)(**(SHAPES | own | options))
    net = transformers.AutoModelForCausalLM.from_config(config)
    state = net.state_dict()
    for name in state:
        if "norm" in name:
            state[name] = state[name] + 0.2 * torch.randn_like(state[name])
        if "bias" in name:
            state[name] = 0.1 * torch.randn_like(state[name])
        if name.startswith(("lm_head", "embed_out")):
            state[name] = state[name] * 1.5
    width = config.hidden_size
    if head == "two_class":
        state |= {"score.0.weight": torch.randn(width, width) / 8, "score.0.bias": torch.randn(width) / 8}
        state |= {"score.2.weight": torch.randn(2, width) / 5, "score.2.bias": torch.randn(2) / 8}
    if head == "token_class":
        name = "classifier" if model == "gpt_neox" else "score"
        state |= {f"{name}.weight": torch.randn(2, width) / 5, f"{name}.bias": torch.randn(2) / 8}
    net.save_pretrained(folder, state_dict=state)
    if head == "sigmoid":
        write_reward_head(
            folder / "reward_head.pt", (torch.randn(1, width) / 6).numpy(), np.array([0.1], dtype=np.float32)
        )
    if head == "token_class":
        name = type(net).__name__.replace("ForCausalLM", "ForTokenClassification")
        set_config(folder, architectures=[name], id2label={"0": "LABEL_0", "1": "LABEL_1"})
    write_tokenizer(folder / "tokenizer.json")
    set_tokenizer(folder)
    return folder


def set_tokenizer(folder: Path, **settings: Any) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# the oracle: plain transformers


def oracle(folder: Path, head: str, prompt: str, steps: tuple[str, ...]) -> list[float]:
    """The reward of each step, each from a run of its own on the text up to it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reward = reward_of(folder, head, tokenizer)
    with torch.no_grad():
        return [reward(*text_of(tokenizer, head, prompt, steps, k)) for k in range(len(steps))]


def text_of(tokenizer: Any, head: str, prompt: str, steps: tuple[str, ...], k: int) -> tuple[list[int], int]:
    """Token ids that end with step k as the authors of each convention build them, and where it is read."""
    last = k == len(steps) - 1
    if head == "sigmoid":
        ids = tokenizer(prompt + "\n\n".join(steps[: k + 1]) + ("" if last else "\n\n"))["input_ids"]
        return ids, len(ids) - 1
    if head == "token_class":  # TRL
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
        for step in steps[: k + 1]:
            ids = ids + tokenizer(step, add_special_tokens=False)["input_ids"]
            ids = ids + tokenizer("\n", add_special_tokens=False)["input_ids"]
        return ids, len(ids) - 1
    if head == "two_class":
        answer = "".join(step + "<extra_0>" for step in steps[: k + 1])
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return ids, len(ids) - 1 - ids[::-1].index(tokenizer.convert_tokens_to_ids("<extra_0>"))
    if head == "token_pair":  # Math-Shepherd
        ids = tokenizer(f"{prompt} " + "\n".join(step + TAG for step in steps[: k + 1]))["input_ids"]
        return ids, len(ids) - 1
    conversation = []
    for index, step in enumerate(steps[: k + 1]):
        conversation.append({"role": "user", "content": f"{prompt} {step}" if index == 0 else step})
        conversation.append({"role": "assistant", "content": GOOD})
    ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)  # read in front of the answer
    return ids, len(ids) - 2 - ids[::-1].index(tokenizer.convert_tokens_to_ids(GOOD))


def reward_of(folder: Path, head: str, tokenizer: Any) -> Callable[[list[int], int], float]:
    """The head's formula on what a model of transformers gives."""
    from safetensors.torch import load_file

    if head == "token_class":
        net = transformers.AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
        return lambda ids, at: float(net(torch.tensor([ids])).logits[0, at].softmax(-1)[1])
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if head in ("token_pair", "chat"):
        pair = tokenizer.convert_tokens_to_ids([GOOD, BAD])
        return lambda ids, at: float(net(torch.tensor([ids])).logits[0, at][pair].softmax(-1)[0])

    def hidden(ids: list[int], at: int) -> Any:
        return net(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, at]

    if head == "sigmoid":
        state = torch.load(folder / "reward_head.pt", weights_only=True)
        return lambda ids, at: float(torch.sigmoid(hidden(ids, at) @ state["weight"].T + state["bias"]))
    w = load_file(folder / "model.safetensors")

    def two_class(ids: list[int], at: int) -> float:
        inner = torch.relu(hidden(ids, at) @ w["score.0.weight"].T + w["score.0.bias"])
        return float((inner @ w["score.2.weight"].T + w["score.2.bias"]).softmax(-1)[1])

    return two_class


# the program


@pytest.fixture(scope="module", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Graphs are traced once for each set of weights: the heads are put in later."""
    made: dict[tuple[str, float], Path] = {}
    trace = way._trace

    def cached(net: Any, checkpoint: Any, target: Path) -> None:
        weights = float(sum(parameter.double().abs().sum() for parameter in net.parameters()))
        key = (checkpoint.model_type + str(net.config.to_dict().get("rope_theta")), weights)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("traced") / "optimum"
            trace(net, checkpoint, made[key])
        shutil.copytree(made[key], target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, "_trace", cached)
        yield


def of_bundle(source: Path, head: str, target: Path, exporter: str = "auto") -> list[tuple[float, ...]]:
    """Rewards of TRAJECTORIES by an fp32 bundle."""
    bundle = export(str(source), target, recipe="fp32", exporter=exporter, **OPTIONS.get(head, {}))
    with edge_prm.load(bundle, threads=1) as prm:
        return [prm.score(prompt, list(steps)).rewards for prompt, steps in TRAJECTORIES]


def of_reference(source: Path, head: str, folder: Path) -> list[tuple[float, ...]]:
    """Rewards of TRAJECTORIES by `bench reference`; CheckpointError with its message when it refuses."""
    data, output = folder / "data.jsonl", folder / "reference.jsonl"
    rows = [{"id": i, "problem": prompt, "steps": steps} for i, (prompt, steps) in enumerate(TRAJECTORIES)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = []
    for name, value in OPTIONS.get(head, {}).items():
        pairs = zip(("good-token", "bad-token"), value) if name == "token_pair" else ((name.replace("_", "-"), value),)
        options += [part for key, text in pairs for part in (f"--{key}", text)]
    result = run("bench", "reference", source, data, "-o", output, "--batch-size", 2, "--threads", 1, *options)
    assert "Traceback" not in result.stderr
    if result.exit_code == 2:
        assert not output.exists()
        raise CheckpointError(result.stderr.strip().splitlines()[-1].removeprefix("Error: "))
    lines = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    return [tuple(line["rewards"]) if "rewards" in line else () for line in lines]


def assert_same(found: list[tuple[float, ...]], expected: list[list[float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(np.subtract(ours, theirs)).max() <= LIMIT, (ours, theirs)


COMBINATIONS = [
    (model, head) for model in ARCHITECTURES for head in HEADS if head != "token_class" or model not in NO_TOKEN_CLASS
]


@pytest.mark.parametrize(("model", "head"), COMBINATIONS)
def test_rewards_are_those_of_plain_transformers_or_refused(model: str, head: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", model, head)
    if said := REFUSED.get((model, head)):
        for way_of in (of_bundle, of_reference):
            with pytest.raises(CheckpointError, match=said):
                way_of(source, head, tmp_path if way_of is of_reference else tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    expected = [oracle(source, head, prompt, steps) for prompt, steps in TRAJECTORIES]
    rewards = np.concatenate(expected)
    assert rewards.std() > 0.01  # a difference would show
    assert ((rewards > 1e-3) & (rewards < 1 - 1e-3)).mean() > 0.5
    assert_same(of_reference(source, head, tmp_path), expected)
    exporters = ("native", "optimum") if model == "qwen2" else ("auto",)
    for exporter in exporters:
        assert_same(of_bundle(source, head, tmp_path / exporter, exporter), expected)
        backend = read_manifest(tmp_path / exporter).backend
        assert backend == ("onnx" if exporter == "native" else "optimum")


# conventions of tokenizers


def _bos_first(folder: Path) -> None:
    """tokenizer.json puts a token in front of every text."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[token])
    tokenizer.save(str(folder / "tokenizer.json"))


def _bos_in_both(folder: Path) -> None:
    _bos_first(folder)
    set_tokenizer(folder, bos_token="<|endoftext|>")


def _bos_by_class(folder: Path) -> None:
    """Only transformers' class adds it."""
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    set_tokenizer(folder, tokenizer_class="LlamaTokenizerFast", add_bos_token=True, **names)


def _bos_off_by_class(folder: Path) -> None:
    """tokenizer.json adds it, and transformers' class takes it away again."""
    _bos_first(folder)
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    set_tokenizer(folder, tokenizer_class="LlamaTokenizerFast", add_bos_token=False, **names)


def _end_by_class(folder: Path) -> None:
    names = {"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    set_tokenizer(folder, tokenizer_class="LlamaTokenizerFast", add_bos_token=False, add_eos_token=True, **names)


def _template_that_trims(folder: Path) -> None:
    set_tokenizer(folder, chat_template=CHAT_TEMPLATE.replace("message.content", "message.content | trim"))


def _template_with_another_last_turn(folder: Path) -> None:
    changed = CHAT_TEMPLATE.replace("message.content +", "message.content + ('' if loop.last else ' (done)') +")
    set_tokenizer(folder, chat_template=changed)


def _template_with_bos(folder: Path) -> None:
    set_tokenizer(folder, bos_token="<|endoftext|>", chat_template="{{ bos_token }}" + CHAT_TEMPLATE)


def _token_that_trims(folder: Path) -> None:
    """A special token that takes the blanks around it."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for token in tokenizer["added_tokens"]:
        token["lstrip"] = token["rstrip"] = True
    path.write_text(json.dumps(tokenizer))


CONVENTIONS = (
    _bos_in_both, _bos_by_class, _bos_off_by_class, _end_by_class, _template_that_trims,
    _template_with_another_last_turn, _template_with_bos, _token_that_trims,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """head -> checkpoint; not to be changed."""
    made: dict[str, Path] = {}

    def make(head: str) -> Path:
        if head not in made:
            made[head] = write_tiny(tmp_path_factory.mktemp("llama") / head, "llama", head)
        return made[head]

    return make


DISAGREE = ("disagree about a text", "chat template", "tokenizer adds", "tokenizer_config.json")


def outcome(run_it: Callable[[], list[tuple[float, ...]]]) -> tuple[list[tuple[float, ...]], str]:
    """Rewards, or why there are none."""
    try:
        return run_it(), ""
    except CheckpointError as error:
        return [], str(error)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.__name__.strip("_"))
def test_a_convention_of_the_tokenizer_is_kept_or_refused(
    tiny_llama: Callable[[str], Path], tmp_path: Path, convention: Callable[[Path], None], head: str
) -> None:
    """Never another reward: within the limit, or a sentence that says where two tokenizers disagree."""
    source = Path(shutil.copytree(tiny_llama(head), tmp_path / "source"))
    convention(source)
    expected = [oracle(source, head, prompt, steps) for prompt, steps in TRAJECTORIES]
    found, said = outcome(lambda: of_bundle(source, head, tmp_path / "out"))
    assert_same(found, expected if found else [])
    assert bool(found) == (tmp_path / "out").exists()
    assert found or any(word in said for word in DISAGREE), said
    found, said = outcome(lambda: of_reference(source, head, tmp_path))
    if not found:
        assert any(word in said for word in DISAGREE), said
        return
    kept = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if ours]
    assert_same([ours for ours, _ in kept], [theirs for _, theirs in kept])
    for ours, line in zip(found, (tmp_path / "reference.jsonl").read_text().splitlines()[1:], strict=True):
        assert ours or "disagree about a text" in json.loads(line)["skipped"]


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
            "differ by kind",
        ),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1.0, "mscale": 2}}, "mscale"),
        ({"rope_parameters": "default"}, "not an object"),
    ],
)
def test_rope_parameters_that_cannot_be_said_are_refused(
    tiny_llama: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    source = _rewritten(tiny_llama("sigmoid"), tmp_path / "source", lambda config: config | change)
    refused_by_both(source, "sigmoid", tmp_path, said)


def refused_by_both(source: Path, head: str, folder: Path, said: str) -> None:
    """`export` and `bench reference` say the same thing in one sentence, and write nothing."""
    for run_it in (lambda: of_bundle(source, head, folder / "out"), lambda: of_reference(source, head, folder)):
        with pytest.raises(CheckpointError) as caught:
            run_it()
        assert said in str(caught.value)
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
    tiny_llama: Callable[[str], Path], tmp_path: Path, edit: Callable[[dict[str, Any]], object], said: str, head: str
) -> None:
    source = _edit_weights(tiny_llama(head), tmp_path / "source", edit)
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
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        of_reference(source, "token_pair", tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        of_bundle(source, "token_pair", tmp_path / "out")


@pytest.mark.parametrize("head", ["sigmoid", "token_pair"])
def test_an_output_matrix_that_is_tied_wins_over_a_stale_one(
    tiny_llama: Callable[[str], Path], tmp_path: Path, head: str
) -> None:
    source = _rewritten(tiny_llama(head), tmp_path / "source", lambda config: config | {"tie_word_embeddings": True})
    expected = [oracle(source, head, *trajectory) for trajectory in TRAJECTORIES]
    assert_same(of_bundle(source, head, tmp_path / "out"), expected)
    assert_same(of_reference(source, head, tmp_path), expected)


def test_names_without_the_model_in_front_are_read(tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
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


# what is no decoder in full precision


def _lora(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


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
        (_lora, "is a LoRA adapter"),
        (_bin_only, "pytorch_model.bin"),
        (_labels(1), "score"),
        (_labels(3), "score"),
        (_config_of(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized already (gptq)"),
        (_config_of(quantization_config={"quant_method": "awq"}), "quantized already (awq)"),
        (_config_of(quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"}), "(bitsandbytes)"),
        (_config_of(quantization_config={"quant_method": "fp8"}), "quantized already (fp8)"),
        (_config_of(auto_map={"AutoModel": "modeling_x.OwnModel"}), "auto_map asks for code of its own"),
        (_config_of(model_type="own", auto_map={"AutoConfig": "c.OwnConfig"}), "does not know model_type 'own'"),
        (_nested, "holds its decoder in text_config"),
    ],
)
def test_what_is_no_plain_decoder_is_named(
    tiny_llama: Callable[[str], Path], tmp_path: Path, edit: Callable[[Path], None], said: str
) -> None:
    source = Path(shutil.copytree(tiny_llama("token_class"), tmp_path / "source"))
    edit(source)
    refused_by_both(source, "token_class", tmp_path, said)


def test_a_class_that_is_a_decoder_and_a_head_is_read(tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
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
    found, said = outcome(lambda: of_reference(source, "token_class", tmp_path))
    assert_same(found, expected if found else [])
    assert found or "old_head.safetensors" in said
