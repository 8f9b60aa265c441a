"""Train the two embedded reward models from scratch: `python examples/train_demo/train_demo.py`.

Needs torch, transformers, tokenizers and safetensors, and about an hour on two CPU cores. Progress goes to stderr; the
last line of stdout is one JSON document with the held-out AUC of each checkpoint as it is on disk, in bf16.
The ones in the package went on after that: `demo` once (`--resume --steps 600`), `demo-reference` three
times (`--steps 900 --seed 1`, `--steps 600 --seed 2`, `--steps 900 --seed 3`).

Both models learn one thing: at the token that closes a step, are this step and all before it right? Three more losses
get a tiny model there in minutes: the next token of a right derivation, predicted two layers early, in which it finds
the arithmetic; one layer later, whether a token is the very one at which a mistake begins; and at the end, at every
token of the steps, whether all is right so far.
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from training_text import VOCABULARY, Example, encode, tokenizer_config, train_tokenizer
from transformers import Qwen2Config, Qwen2Model

import edge_prm.demo
from edge_prm.demo.derivations import Derivation, generate, plant_mistake

HELD_OUT, HELD_OUT_SEED = 500, 1_000_003
HEAD_DIM = 32
LAYERS_TO_JUDGE = 2  # the next token is predicted this many layers early: they compare it with the written token
POOL = 16  # batches drawn together and sorted by length, so that little of a batch is padding
MISTAKE_RATE = 0.6
MISTAKE_WEIGHT = 6.0  # one token of a dozen begins a mistake
WARM_UP, SAVE_EVERY = 100, 300
RESUMED = 0.4  # share of the learning rate that a resumed run begins with
HERE = Path(edge_prm.demo.__file__).parent


@dataclass(frozen=True)
class Recipe:
    """One checkpoint: its folder, its head, its size and how long it trains."""

    folder: str
    two_class: bool
    hidden: int
    layers: int
    intermediate: int
    positions: int
    steps: int
    batch: int
    learning_rate: float

    def config(self) -> dict[str, object]:
        """Return what `config.json` holds, in the layout of the checkpoint family of this head."""
        config: dict[str, object] = {
            "architectures": ["Qwen2ForProcessRewardModel" if self.two_class else "Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.positions,
            "num_attention_heads": self.hidden // HEAD_DIM,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": not self.two_class,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": VOCABULARY,
        }
        if self.two_class:
            config["num_labels"] = 2
            config["auto_map"] = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
        return config


RECIPES = {
    "demo": Recipe("checkpoint", False, 128, 5, 384, 2048, steps=2400, batch=48, learning_rate=2e-3),
    "demo-reference": Recipe("reference", True, 192, 5, 512, 1024, steps=2600, batch=40, learning_rate=2e-3),
}


class Judge(nn.Module):
    """A Qwen2 backbone and a reward head; the head reads the hidden state after the final norm."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = Qwen2Model(Qwen2Config(**recipe.config()))
        self.two_class, hidden = recipe.two_class, recipe.hidden
        two_class_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.score = two_class_head if self.two_class else nn.Linear(hidden, 1)
        self.begins_mistake = nn.Linear(hidden, 1)  # for training only

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ids [batch, length] to hidden states two layers early, and the log-odds [batch, length] of "a mistake
        begins here" one layer early and of "right so far"."""
        # Padding is on the right and attention is causal, so no attention mask is needed.
        output = self.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        scores = self.score(output.last_hidden_state)
        logits = scores[..., 1] - scores[..., 0] if self.two_class else scores[..., 0]
        begins = self.begins_mistake(F.rms_norm(output.hidden_states[-2], output.hidden_states[-2].shape[-1:]))
        return output.hidden_states[-1 - LAYERS_TO_JUDGE], begins[..., 0], logits


def held_out() -> list[Derivation]:
    """Return the derivations that measure the AUC; no two of them have the same numbers in the problem."""
    by_numbers = {numbers(derivation): derivation for derivation in generate(HELD_OUT_SEED, HELD_OUT)}
    return list(by_numbers.values())


def numbers(derivation: Derivation) -> tuple[str, ...]:
    """Return the numbers of the problem in their order: two problems that differ in them are two problems."""
    return tuple(re.findall(r"\d+", derivation.problem))


class Pair(NamedTuple):
    """A text to learn from, and the position of its first token that the right derivation would not have there."""

    example: Example
    deviates: int


def training_batches(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Iterator[list[Pair]]:
    """Yield batches without end; no problem in them has the same numbers in the same order as a held-out one."""
    rng = random.Random(seed)
    excluded = {numbers(derivation) for derivation in held_out()}
    while True:
        drawn = generate(rng.randrange(HELD_OUT_SEED), POOL * recipe.batch, mistake_rate=0)
        right = [derivation for derivation in drawn if numbers(derivation) not in excluded]
        right = right[: len(right) // recipe.batch * recipe.batch]
        given = [plant_mistake(each, rng) if rng.random() < MISTAKE_RATE else each for each in right]
        if not recipe.two_class:
            given = [cut(each, rng) if rng.random() < 0.5 else each for each in given]
        encoded = zip(*(encode(each, recipe.two_class, tokenizer) for each in (given, right)), strict=True)
        pairs = [
            Pair(example, len(example.ids) if all(example.labels) else first_difference(example.ids, other.ids))
            for example, other in encoded
        ]
        pairs.sort(key=lambda pair: len(pair.example.ids))
        batches = [pairs[start : start + recipe.batch] for start in range(0, len(pairs), recipe.batch)]
        rng.shuffle(batches)
        yield from batches


def first_difference(ids: list[int], others: list[int]) -> int:
    """Return the first index at which two lists differ, or the length of the shorter one."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ids), len(others)))


def cut(derivation: Derivation, rng: random.Random) -> Derivation:
    """Drop the last steps: a text can end at any step, and then no separator follows the step read there."""
    kept = rng.randint(1, len(derivation.steps))
    first_wrong = None if all(derivation.labels[:kept]) else derivation.first_wrong
    return Derivation(derivation.problem, derivation.steps[:kept], first_wrong)


def padded(examples: list[Example]) -> Tensor:
    """Stack token ids into [batch, longest]; padding on the right of a text is never read."""
    rows = [torch.tensor(example.ids) for example in examples]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def read(logits: Tensor, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Pick the logits that close steps, and their labels, both [steps of all examples]."""
    at = [(row, close) for row, example in enumerate(examples) for close in example.closes]
    labels = [label for example in examples for label in example.labels]
    rows, columns = torch.tensor(at).T
    return logits[rows, columns], torch.tensor(labels, dtype=torch.float32)


def losses_of(judge: Judge, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the losses of the rewards, of "right so far", of "a mistake begins here", and of the next tokens."""
    examples = [pair.example for pair in pairs]
    ids = padded(examples)
    hidden, begins, logits = judge(ids)
    reward_loss = F.binary_cross_entropy_with_logits(*read(logits, examples))
    at = [
        (row, index, float(index < deviates))
        for row, (example, deviates) in enumerate(pairs)
        for index in range(example.begins, len(example.ids))
    ]
    rows, columns, right = (torch.tensor(each) for each in zip(*at, strict=True))
    token_loss = F.binary_cross_entropy_with_logits(logits[rows, columns], right)
    first = columns <= torch.tensor([pair.deviates for pair in pairs])[rows]
    begins_loss = F.binary_cross_entropy_with_logits(
        begins[rows, columns][first], 1 - right[first], pos_weight=torch.tensor(MISTAKE_WEIGHT)
    )
    rows, columns = rows[right == 1], columns[right == 1]
    before = hidden[rows, columns - 1]
    predictions = F.linear(F.rms_norm(before, before.shape[-1:]), judge.model.embed_tokens.weight)
    return reward_loss, token_loss, begins_loss, F.cross_entropy(predictions, ids[rows, columns])


def train(name: str, seed: int, steps: int, resume: bool) -> None:
    """Train one checkpoint and save it, now and then on the way too, so that a run can be stopped early.

    `resume` goes on from what is on disk, with a schedule of its own; at the full learning rate it would unlearn.
    """
    highest = RECIPES[name].learning_rate * (RESUMED if resume else 1)
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(recipe.two_class)
    judge = load(recipe) if resume else Judge(recipe)
    optimizer = torch.optim.AdamW(judge.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    started = time.process_time()
    for step, pairs in zip(range(1, steps + 1), training_batches(recipe, tokenizer, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = highest * min(step / WARM_UP, 0.51 + 0.49 * math.cos(math.pi * step / steps))
        losses = losses_of(judge, pairs)
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps:
            shown = ", ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"{name} step {step}/{steps}, {time.process_time() - started:.0f} s: {shown}", file=sys.stderr)
        if step % SAVE_EVERY == 0 or step == steps:
            save(judge, recipe, tokenizer)
            print(f"{name} saved: {evaluate(name, 400)}", file=sys.stderr)


def save(judge: Judge, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Write the checkpoint in the file layout of its family."""
    folder = HERE / recipe.folder
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for file, content in (
        ("config.json", recipe.config()),
        ("tokenizer_config.json", tokenizer_config(recipe.two_class, tokenizer, recipe.positions)),
    ):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    trained = {name: value for name, value in judge.state_dict().items() if not name.startswith("begins_mistake")}
    kept = {name: value.detach().to(torch.bfloat16) for name, value in trained.items()}
    if not recipe.two_class:
        kept = {name: value for name, value in kept.items() if name.startswith("model.")}
        torch.save({name: value.clone() for name, value in judge.score.state_dict().items()}, folder / "reward_head.pt")
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def load(recipe: Recipe) -> Judge:
    """Read a checkpoint from disk; the layer that only training uses is initialized again."""
    folder = HERE / recipe.folder
    judge = Judge(recipe)
    state = load_file(folder / "model.safetensors")
    if not recipe.two_class:
        head = torch.load(folder / "reward_head.pt", weights_only=True)
        state |= {f"score.{key}": value for key, value in head.items()}
    judge.load_state_dict(state, strict=False)
    return judge


@torch.inference_mode()
def evaluate(name: str, count: int = HELD_OUT) -> dict[str, float]:
    """Judge held-out derivations with the checkpoint on disk; the AUC is over the steps of all of them."""
    recipe = RECIPES[name]
    judge = load(recipe).eval()
    tokenizer = Tokenizer.from_file(str(HERE / recipe.folder / "tokenizer.json"))
    examples = encode(held_out()[:count], recipe.two_class, tokenizer)
    batches = [examples[start : start + 100] for start in range(0, len(examples), 100)]
    logits, labels = map(torch.cat, zip(*(read(judge(padded(batch))[2], batch) for batch in batches), strict=True))
    right = ((logits > 0) == labels.bool()).float().mean().item()
    return {"derivations": len(examples), "steps": len(labels), "auc": auc(logits, labels), "accuracy": round(right, 4)}


def auc(scores: Tensor, labels: Tensor) -> float:
    """Return the share of (right, wrong) pairs in which the right step scores higher; ties count half."""
    right, wrong = scores[labels == 1], scores[labels == 0].sort().values
    below, up_to = (torch.searchsorted(wrong, right, right=side) for side in (False, True))
    return round(((below + up_to).double().mean() / 2 / len(wrong)).item(), 5)


def main() -> None:
    """Train, or with `--evaluate` only measure, one checkpoint or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps of each checkpoint (default: its recipe's)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints on disk")
    parser.add_argument("--only", choices=tuple(RECIPES))
    parser.add_argument("--evaluate", action="store_true", help="print the held-out AUC of the checkpoints on disk")
    options = parser.parse_args()
    names = [options.only] if options.only else list(RECIPES)
    for name in names if not options.evaluate else ():
        train(name, options.seed, options.steps or RECIPES[name].steps, options.resume)
    print(json.dumps({name: evaluate(name) for name in names}))


if __name__ == "__main__":
    main()
