"""Train a tiny process reward model and export it: `python train_tiny_prm.py FOLDER`, less than a minute on two cores.

A reward model is fine-tuned from a language model that writes such texts itself. Here that is the lower three layers of
the embedded demo checkpoint, which predict the next token of arithmetic derivations (see examples/train_demo). They stay
as they are; two new layers and a reward head are trained on derivations with planted mistakes.

Writes FOLDER/checkpoint in the layout of ReasonFlux-PRM-1.5B (a Qwen2 decoder, and a linear head with a sigmoid in
reward_head.pt), exports it to FOLDER/prm-int8, scores held-out derivations with the bundle, and prints the AUC: 0.5 is
chance. A larger model of the same layout is exported in the same way.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Config, Qwen2ForCausalLM

import edge_prm
import edge_prm.demo
from edge_prm.demo.derivations import Derivation, generate
from edge_prm_export import export

SEED, HELD_OUT_SEED, HELD_OUT = 0, 1_000_003, 200
STEPS, BATCH, LEARNING_RATE = 200, 48, 3e-3
LANGUAGE_LAYERS, NEW_LAYERS = 3, 2
DEMO = edge_prm.demo.folder("demo")
CONFIG = Qwen2Config.from_pretrained(DEMO, num_hidden_layers=LANGUAGE_LAYERS + NEW_LAYERS, dtype="float32")


def encode(derivation: Derivation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the token ids of a derivation and, for each step, the index of the token that closes it.

    This is how edge-prm reads a bundle with raw input: nothing between problem and first step, a blank line between
    steps, none after the last one.
    """
    text, ends = derivation.problem, []
    for index, step in enumerate(derivation.steps):
        text += step + ("\n\n" if index < len(derivation.steps) - 1 else "")
        ends.append(len(text))
    encoding = tokenizer.encode(text, add_special_tokens=False)
    token_ends = [end for _, end in encoding.offsets]
    return encoding.ids, [token_ends.index(end) for end in ends]


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield ids [batch, length], positions of closing tokens [n, 2] (row, column), and their labels [n]."""
    rng = random.Random(seed)
    held_out = {derivation.problem for derivation in generate(HELD_OUT_SEED, HELD_OUT)}
    while True:
        derivations = [each for each in generate(rng.randrange(10**9), BATCH) if each.problem not in held_out]
        encoded = [encode(each, tokenizer) for each in derivations]
        ids = pad_sequence([torch.tensor(each) for each, _ in encoded], batch_first=True)
        closes = [(row, column) for row, (_, columns) in enumerate(encoded) for column in columns]
        labels = [label for each in derivations for label in each.labels]
        yield ids, torch.tensor(closes), torch.tensor(labels, dtype=torch.float32)


def language_model() -> Qwen2ForCausalLM:
    """Return the decoder to start from: layers of a language model that stay as they are, below new ones."""
    model = Qwen2ForCausalLM(CONFIG)
    weights = load_file(DEMO / "model.safetensors")
    lower = ("model.embed_tokens.", *(f"model.layers.{layer}." for layer in range(LANGUAGE_LAYERS)))
    model.load_state_dict({name: value for name, value in weights.items() if name.startswith(lower)}, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(lower))
    return model


def train(tokenizer: Tokenizer) -> tuple[Qwen2ForCausalLM, torch.nn.Linear]:
    """Train the new layers and the reward head together."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # on matrices as small as these, threads wait for each other more than they work
    model, head = language_model(), torch.nn.Linear(CONFIG.hidden_size, 1)
    parameters = [each for each in (*model.parameters(), *head.parameters()) if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    started = time.perf_counter()
    for step, (ids, closes, labels) in zip(range(1, STEPS + 1), batches(tokenizer, SEED), strict=False):
        # Padding is on the right and attention is causal, so no attention mask is needed.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        rewards = head(hidden)[..., 0]
        loss = F.binary_cross_entropy_with_logits(rewards[closes[:, 0], closes[:, 1]], labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}/{STEPS}, {time.perf_counter() - started:.0f} s: loss {loss.item():.3f}", flush=True)
    return model, head


def save(model: Qwen2ForCausalLM, head: torch.nn.Linear, folder: Path) -> None:
    """Write a checkpoint: config.json, model.safetensors, tokenizer.json and the reward head."""
    model.save_pretrained(folder)
    torch.save(head.state_dict(), folder / "reward_head.pt")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)


def auc(bundle: Path) -> float:
    """Return the share of pairs of a right and a wrong held-out step in which the right one has the higher reward."""
    derivations = list(generate(HELD_OUT_SEED, HELD_OUT))
    with edge_prm.load(bundle) as prm:
        scores = prm.score_many((each.problem, each.steps) for each in derivations)
        rewards = [reward for score in scores for reward in score.rewards]
    labels = [label for each in derivations for label in each.labels]
    right, wrong = ([r for r, label in zip(rewards, labels, strict=True) if label is side] for side in (True, False))
    return sum((a > b) + (a == b) / 2 for a in right for b in wrong) / len(right) / len(wrong)


def main(folder: Path) -> None:
    """Train, save, export, measure; exit with 1 where the model learned nothing."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    model, head = train(tokenizer)
    save(model, head, folder / "checkpoint")
    export(str(folder / "checkpoint"), folder / "prm-int8", recipe="int8")
    result = auc(folder / "prm-int8")
    print(json.dumps({"held_out_auc": round(result, 4), "bundle": str(folder / "prm-int8")}))
    if result < 0.7:
        sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    main(Path(sys.argv[1]))
