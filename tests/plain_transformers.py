"""Tiny random checkpoints as transformers saves them, what plain transformers makes of them, and what the program does.

The oracle shares no code with the program: it builds each text by hand, tokenizes it with AutoTokenizer or
apply_chat_template, runs a model of transformers on every prefix by itself, and applies the head by its formula.
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

REASON = 'optimum is not installed: pip install "edge-prm[optimum]"'
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("optimum.exporters.onnx", reason=REASON)

import edge_prm_export.optimum.trace as way  # noqa: E402
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
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),  # its output matrix has a bias
}
HEADS = ("sigmoid", "two_class", "token_class", "token_pair", "chat")
"""`token_pair`: a tag closes a step, as in Math-Shepherd; `chat`: steps are turns, as in RLHFlow."""
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


def trace_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Graphs are traced once for each set of weights: the heads are put in later."""
    made: dict[tuple[str, float], Path] = {}
    trace = way._trace

    def cached(net: Any, checkpoint: Any, target: Path) -> None:
        weights = float(sum(parameter.detach().double().abs().sum() for parameter in net.parameters()))
        key = (checkpoint.model_type + str(net.config.to_dict().get("rope_theta")), weights)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("traced") / "optimum"
            trace(net, checkpoint, made[key])
        shutil.copytree(made[key], target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, "_trace", cached)
        yield


def write_llamas(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """head -> checkpoint of a family that is exported natively; not to be changed."""
    return _write_once(tmp_path_factory, "llama")


def write_no_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """head -> checkpoint of a decoder that only optimum exports; not to be changed."""
    return _write_once(tmp_path_factory, "smollm3")


def _write_once(tmp_path_factory: pytest.TempPathFactory, model: str) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(head: str) -> Path:
        if head not in made:
            made[head] = write_tiny(tmp_path_factory.mktemp(model) / head, model, head)
        return made[head]

    return make


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


def outcome(run_it: Callable[[], list[tuple[float, ...]]]) -> tuple[list[tuple[float, ...]], str]:
    """Rewards, or why there are none."""
    try:
        return run_it(), ""
    except CheckpointError as error:
        return [], str(error)
