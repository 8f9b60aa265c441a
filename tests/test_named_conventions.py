"""Conventions by name: token ids and rewards are those of each judge's authors, and what does not fit is refused.

The oracle is written from the authors' published code: a text built by hand, AutoTokenizer, a model of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHAT_TEMPLATE, write_checkpoint, write_tokenizer

from edge_prm.encode import Encoded, Encoder
from edge_prm.errors import CheckpointError, HeadNotFoundError, InputError
from edge_prm.head import HEADS
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.conventions import CONVENTIONS, Given, choose
from edge_prm_export.checkpoint.files import Checkpoint, open_checkpoint
from edge_prm_export.checkpoint.head import HEAD_READERS
from edge_prm_export.checkpoint.template import WRITINGS, head_and_format

pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')
transformers = pytest.importorskip("transformers", reason="the oracle is transformers: pip install transformers")

TAG = " ки"
LLAMA_3_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + "
    "m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CORPUS = [
    "Step 1: Janet has 16 eggs a day. ки\nStep 2: She eats 3 of them. ки\nIs it right? + Is it wrong? -\n\n",
    "What is 2 + 3 - 4? ки\n\nThe answer is 1. ки\n 3: so 1 + 1 - 1 = 1 ки a+b-c",
]
TRAJECTORIES = (
    ("How many eggs does she sell?", ("Step 1: Janet has 16 eggs a day.", "Step 2: 16 - 3 = 13", "Step 3: It is 13!")),
    ("  What is 2 + 3 * 4?  ", ("  3 * 4 = 12  ", "Then add: 2 + 12 = 14 😀 ", " é ")),
    ("A farmer has 17 sheep\n\nand buys 5 more \n", ("17 + 5 = 22\nsheep",)),
)
MODELS = {"er-prm": "llama", "rlhflow": "llama", "math-shepherd": "mistral", "skywork-o1": "qwen2"}


def opened(folder: Path) -> Checkpoint:
    """A checkpoint of any family: conventions do not depend on it."""
    return open_checkpoint(str(folder), native=False)


def llama_3_like(path: Path, corpus: list[str] = CORPUS) -> Path:
    """A byte-level BPE with Llama 3's pattern and names, that puts its first token before every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pieces = [
        pre_tokenizers.Split(Regex(LLAMA_3_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(corpus * 4, trainer)
    tokenizer.add_special_tokens([*LLAMA_3_TOKENS])
    begins = (LLAMA_3_TOKENS[0], tokenizer.token_to_id(LLAMA_3_TOKENS[0]))
    tokenizer.post_processor = processors.TemplateProcessing(f"{begins[0]} $A", special_tokens=[begins])
    tokenizer.save(str(path))
    return path


def mistral_like(path: Path) -> Path:
    """A BPE with byte fallback over blanks written as `▁`, with a blank before every text, as Llama 2's and Mistral's."""
    from tokenizers import Tokenizer, models, normalizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = [word for text in CORPUS * 4 for word in text.split()]
    trainer = BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    data = json.loads(tokenizer.to_str())
    count = len(data["model"]["vocab"])
    data["model"]["vocab"] |= {f"<0x{byte:02X}>": count + byte for byte in range(256)}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    begins = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[begins])
    tokenizer.save(str(path))
    return path


SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": LLAMA_3_TOKENS[0],
        "eos_token": "<|eot_id|>",
        "chat_template": LLAMA_3_TEMPLATE,
    },
    "mistral": {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE},
}
TOKENIZERS = {"llama": llama_3_like, "mistral": mistral_like, "qwen2": write_tokenizer}


def dress(folder: Path, model: str) -> Path:
    """Put the tokenizer of a family into a checkpoint."""
    TOKENIZERS[model](folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS[model]))
    return folder


def skywork(folder: Path) -> Path:
    """A tiny Qwen2 checkpoint in the layout of Skywork-o1-Open-PRM."""
    rng = np.random.default_rng(5)
    head = {
        "v_head.summary.weight": rng.standard_normal((1, 64)).astype(np.float32) / 6,
        "v_head.summary.bias": np.array([0.2], dtype=np.float32),
    }
    tokenizer = write_tokenizer(folder.with_suffix(".json"))
    write_checkpoint(folder, tokenizer, "none", "fp32", replace=head, architectures=["Qwen2ForPrmModel"])
    return dress(folder, "qwen2")


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """convention -> a tiny checkpoint of its family; not to be changed."""
    made: dict[str, Path] = {}

    def make(convention: str) -> Path:
        model = MODELS[convention]
        if model not in made:
            folder = tmp_path_factory.mktemp(model) / "tiny"
            if model == "qwen2":
                made[model] = skywork(folder)
            else:
                plain = pytest.importorskip("plain_transformers")
                made[model] = dress(plain.write_tiny(folder, model, "token_pair"), model)
        return made[model]

    return make


# the oracle


def er_prm(tokenizer: Any, prompt: str, steps: tuple[str, ...]) -> list[tuple[list[int], int]]:
    """evaluation/evaluate_math_reward_model.py: the newline after a tag is taken out of the text."""
    text = f"{prompt} " + "\n".join(step + TAG for step in steps)
    ids = tokenizer.encode(text.replace(" ки\n", TAG))
    tag = tokenizer.encode(TAG)[-1]
    return [(ids[: at + 1], at) for at, id_ in enumerate(ids) if id_ == tag]


def math_shepherd(tokenizer: Any, prompt: str, steps: tuple[str, ...]) -> list[tuple[list[int], int]]:
    ids = tokenizer.encode(f"{prompt} " + "\n".join(step + TAG for step in steps))
    tag = tokenizer.encode("ки")[-1]
    return [(ids[: at + 1], at) for at, id_ in enumerate(ids) if id_ == tag]


def rlhflow(tokenizer: Any, prompt: str, steps: tuple[str, ...]) -> list[tuple[list[int], int]]:
    """math-rm/prm_evaluate.py: `+` as every answer, and the logits third from the end."""
    conversation: list[dict[str, str]] = []
    read = []
    for index, step in enumerate(steps):
        conversation.append({"content": step if index else f"{prompt} {step}", "role": "user"})
        conversation.append({"content": "+", "role": "assistant"})
        ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
        read.append((ids[:-2], len(ids) - 3))
    return read


def skywork_o1(tokenizer: Any, prompt: str, steps: tuple[str, ...]) -> list[tuple[list[int], int]]:
    """prepare_input of skywork-o1-prm-inference."""
    ids = tokenizer.encode(tokenizer.bos_token + prompt + "\n")
    read = []
    for step in steps:
        ids = [*ids, *tokenizer.encode(step), tokenizer.encode("\n")[-1]]
        read.append((ids, len(ids) - 1))
    return read


AUTHORS = {"er-prm": er_prm, "math-shepherd": math_shepherd, "rlhflow": rlhflow, "skywork-o1": skywork_o1}
LABELS: dict[str, Callable[[Any], list[int]]] = {
    "er-prm": lambda tokenizer: [tokenizer.encode(" +")[-1], tokenizer.encode(" -")[-1]],
    "math-shepherd": lambda tokenizer: tokenizer.encode("+ -")[1:],
    "rlhflow": lambda tokenizer: [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]],
}


def authors_rewards(folder: Path, convention: str) -> list[list[float]]:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def reward(ids: list[int], at: int) -> float:
        out = net(torch.tensor([ids]), output_hidden_states=True)
        if convention in LABELS:
            return float(out.logits[0, at, LABELS[convention](tokenizer)].softmax(-1)[0])
        weights = load_file(folder / "model.safetensors")
        hidden = out.hidden_states[-1][0, at]
        return float(torch.sigmoid(hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]))

    with torch.no_grad():
        return [[reward(*read) for read in AUTHORS[convention](tokenizer, *texts)] for texts in TRAJECTORIES]


# ids and rewards


def encoder_of(folder: Path, given: Given) -> Encoder:
    checkpoint = opened(folder)
    _, form, _ = head_and_format(checkpoint, given)
    return Encoder.of_format(folder / "tokenizer.json", form, 1 << 20, checkpoint.config.vocabulary)


@pytest.mark.parametrize("convention", MODELS)
def test_token_ids_of_a_convention_are_those_of_its_authors(checkpoint_of: Callable, convention: str) -> None:
    folder = checkpoint_of(convention)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = encoder_of(folder, Given(convention))
    for prompt, steps in TRAJECTORIES:
        encoded = encoder.encode(Trajectory.of(prompt, list(steps)))
        expected = AUTHORS[convention](tokenizer, prompt, steps)
        assert [encoded.ids[: at + 1].tolist() for at in encoded.read_at] == [ids for ids, _ in expected]
        assert list(encoded.read_at) == [at for _, at in expected]


@pytest.mark.parametrize("convention", MODELS)
def test_rewards_of_a_convention_are_those_of_its_authors(
    checkpoint_of: Callable, tmp_path: Path, convention: str
) -> None:
    pytest.importorskip("onnxruntime", reason='exporting needs it: pip install "edge-prm[export]"')
    import edge_prm
    from edge_prm_export import export

    folder = checkpoint_of(convention)
    bundle = export(str(folder), tmp_path / "out", recipe="fp32", format=convention, exporter="native")
    with edge_prm.load(bundle, threads=1) as prm:
        assert prm.manifest.provenance.convention == convention
        scores = [prm.score(prompt, list(steps)) for prompt, steps in TRAJECTORIES]
    expected = authors_rewards(folder, convention)
    for score, rewards in zip(scores, expected, strict=True):
        assert np.abs(np.subtract(score.rewards, rewards)).max() <= 1e-4
        assert score.score == min(score.rewards)


def test_er_prm_reads_labels_with_their_blanks_and_no_newline_between_steps(checkpoint_of: Callable) -> None:
    """The vocabulary holds `+` and `Ġ+`, and RLHFlow's labels are the other ones."""
    checkpoint = opened(checkpoint_of("er-prm"))
    head, form, _ = head_and_format(checkpoint, Given("er-prm"))
    assert (head.tokens, form.separator, form.between, form.after) == (("Ġ+", "Ġ-"), TAG, " ", "")
    assert (head.kind, head.default_aggregate) == ("token_pair", "min")
    other, _, _ = head_and_format(checkpoint, Given("rlhflow"))
    assert other.tokens == ("+", "-")
    assert not np.array_equal(head.layers[0][0], other.layers[0][0])


def test_er_prm_refuses_a_step_that_shares_a_token_with_the_tag_before_it(tmp_path: Path) -> None:
    """Nothing is between a tag and the next step, and Cyrillic letters may join the tag's."""
    plain = pytest.importorskip("plain_transformers")
    folder = dress(plain.write_tiny(tmp_path / "c", "llama", "token_pair"), "llama")
    llama_3_like(folder / "tokenizer.json", [*CORPUS, "один киты два киты три киты"])
    encoder = encoder_of(folder, Given("er-prm"))
    assert len(encoder.encode(Trajectory.of("Q", ["a", "b", "4"])).read_at) == 3
    with pytest.raises(InputError, match=r"the separator ' ки' after step 0 shares a token with the text next to it"):
        encoder.encode(Trajectory.of("Q", ["a", "ты", "c"]))


# what a checkpoint determines, and what has to be named


@pytest.mark.parametrize(
    ("head", "convention"), [("sigmoid", "reasonflux"), ("two_class", "qwen-math-prm"), ("token_class", "trl")]
)
def test_the_head_of_a_checkpoint_determines_its_convention(write: Callable, head: str, convention: str) -> None:
    checkpoint = opened(write(head))
    found, form, name = head_and_format(checkpoint, Given())
    assert (found.kind, name) == (head, convention)
    assert found.default_aggregate == ("last" if head == "sigmoid" else "min")
    assert head_and_format(checkpoint, Given(convention))[1] == form


def test_a_value_head_is_skyworks(tmp_path: Path) -> None:
    head, _, name = head_and_format(opened(skywork(tmp_path / "c")), Given())
    assert (head.kind, head.default_aggregate, name) == ("sigmoid", "min", "skywork-o1")


def test_label_tokens_without_a_name_are_a_convention_of_the_callers_own(checkpoint_of: Callable) -> None:
    checkpoint = opened(checkpoint_of("er-prm"))
    pair = ("Ġ+", "Ġ-")
    _, tags, tags_name = head_and_format(checkpoint, Given(separator=TAG, token_pair=pair))
    assert (tags_name, tags.format, tags.between, tags.after, tags.separator_id) == (
        *("custom", "tagged", " ", "\n"),
        None,
    )
    _, turns, turns_name = head_and_format(checkpoint, Given(token_pair=("+", "-")))
    assert (turns_name, turns.before[:17]) == ("custom", LLAMA_3_TOKENS[0])


def test_a_language_model_without_a_name_is_refused_with_the_way_out(checkpoint_of: Callable) -> None:
    with pytest.raises(HeadNotFoundError, match=r"name the format of a judge .*--format"):
        choose(opened(checkpoint_of("er-prm")), Given())


def test_explicit_options_override_the_pieces_of_a_named_convention(checkpoint_of: Callable) -> None:
    checkpoint = opened(checkpoint_of("er-prm"))
    given = Given("er-prm", separator=" -", between="\n", after_step="\n", token_pair=("+", "Ġ-"))
    head, form, name = head_and_format(checkpoint, given)
    assert (form.separator, form.between, form.after, head.tokens) == (" -", "\n", "\n", ("+", "Ġ-"))
    assert name == "er-prm"


# refusals


def test_an_unknown_convention_is_refused_with_all_names(write: Callable) -> None:
    with pytest.raises(InputError, match=r"format 'llama' is not known; choose one of reasonflux, .*skywork-o1"):
        choose(opened(write()), Given("llama"))


@pytest.mark.parametrize(
    ("head", "convention", "said"),
    [
        ("two_class", "reasonflux", r"has no reward_head\.pt; it has score\.0\.weight"),
        ("sigmoid", "skywork-o1", r"has no v_head\.summary\.weight; it has reward_head\.pt"),
        ("none", "trl", r"has no score\.weight;"),
    ],
)
def test_a_convention_whose_head_is_missing_is_refused(write: Callable, head: str, convention: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not fit the format {convention}: the checkpoint {said}"):
        choose(opened(write(head)), Given(convention))


def test_a_convention_whose_tag_is_not_one_token_is_refused(write: Callable, tokenizer_file: Path) -> None:
    checkpoint = opened(write("none"))
    with pytest.raises(
        CheckpointError, match=r"fit the format er-prm: the separator ' ки' is \d tokens and must be one"
    ):
        head_and_format(checkpoint, Given("er-prm", token_pair=("a", "b")))


def test_a_convention_whose_labels_are_not_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    plain = pytest.importorskip("plain_transformers")
    folder = dress(plain.write_tiny(tmp_path / "c", "llama", "token_pair"), "llama")
    llama_3_like(folder / "tokenizer.json", ["a ки b ки c ки"])
    with pytest.raises(
        CheckpointError, match=r"the format er-prm: the label ' \+' is no token \(Ġ\+ or ▁\+\) of the vocabulary"
    ):
        choose(opened(folder), Given("er-prm"))


def test_a_label_with_two_pieces_in_the_vocabulary_is_refused(checkpoint_of: Callable, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    plain = pytest.importorskip("plain_transformers")
    folder = dress(plain.write_tiny(tmp_path / "c", "llama", "token_pair"), "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["▁+"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"the label ' \+' is more than one token \(Ġ\+, ▁\+\)"):
        choose(opened(folder), Given("er-prm"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given("trl", token_pair=("+", "-")), "format trl reads a token_class head; leave --good-token"),
        (Given("trl", between=" "), "between and after_step describe a token_pair head"),
        (Given(after_step=" "), "between and after_step describe a token_pair head"),
        (Given("rlhflow", separator=" ки"), "format rlhflow writes each step as a turn of the chat"),
        (Given("rlhflow", after_step=" "), "after_step goes with separator"),
        (Given(separator=""), "separator is empty"),
    ],
)
def test_options_that_do_not_fit_a_convention_are_refused(write: Callable, given: Given, said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose(opened(write("token_class")), given)


# the table, and what is kept of it


def test_every_row_names_a_kind_of_head_and_a_way_of_writing() -> None:
    for name, row in CONVENTIONS.items():
        assert row.name == name
        assert row.head in HEADS
        assert row.writing in WRITINGS
        assert len(row.labels) == HEADS[row.head].tokens


def test_every_head_that_is_found_has_one_convention() -> None:
    """Without `--format`, the place of the head decides."""
    places = [row.place for row in CONVENTIONS.values() if row.place]
    assert sorted(places) == sorted(HEAD_READERS)


def test_the_help_of_export_names_every_convention() -> None:
    from command_line import run

    for command in (("export",), ("bench", "reference")):
        shown = "".join(run(*command, "--help").stdout.split())  # lines break at the hyphens of names
        assert all(name in shown for name in CONVENTIONS), command


def test_continued_steps_have_the_ids_of_the_text_at_once(checkpoint_of: Callable) -> None:
    for convention in MODELS:
        encoder = encoder_of(checkpoint_of(convention), Given(convention))
        prompt, steps = TRAJECTORIES[0]
        known: Encoded | None = None
        for count in range(1, len(steps) + 1):
            trajectory = Trajectory.of(prompt, list(steps[:count]))
            known = encoder.encode(trajectory, known)
            assert known.ids.tolist() == encoder.encode(trajectory).ids.tolist()
            assert known.read_at == encoder.encode(trajectory).read_at
