"""What the demo models read in training: their tokenizer, their texts, and the tokens that close a step."""

import itertools
from typing import NamedTuple

from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edge_prm.demo.derivations import Derivation, generate

VOCABULARY = 512
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SEPARATOR_TOKEN = "<extra_0>"
TOKENIZER_SEED = 1_000_033

# Qwen2's own pattern: digits one by one, a run of newlines apart from the text after it.
PRE_TOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
INSTRUCTION = "Please reason step by step."
SYSTEM = f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- " + repr(SYSTEM) + " }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
ENGLISH = """
Let us think about this step by step. The first thing to do is to find out what we are asked for, and what we know.
There are many ways to solve a problem like this one, but not all of them are equally simple. We can check the result
by putting it back into the equation. If both sides are equal, then the answer is correct; otherwise there must be a
mistake somewhere above. She bought two books and a pen, so the total cost was more than he had expected. How much
money does each of them have left after the trip? The train leaves the station in the morning and arrives before noon.
Since the number is even, it can be divided by two without a remainder. Therefore the sum of these numbers is greater
than the product. Wait, that is wrong: we forgot to carry the one. Now we have everything that is needed, and we can
write down the final value. What would happen if the price were reduced by half? It would still be the same amount.
"""


class Written(NamedTuple):
    """A derivation as one text: the part before the steps, and each step with its separator."""

    lead: str
    steps: list[str]

    @property
    def text(self) -> str:
        return self.lead + "".join(self.steps)


class Example(NamedTuple):
    """Token ids of a text, the positions that close a step, the labels there, and the position of the first step."""

    ids: list[int]
    closes: list[int]
    labels: tuple[bool, ...]
    begins: int


def raw_text(derivation: Derivation) -> Written:
    """Write a derivation as the sigmoid head reads it: nothing before the first step, blank lines between steps."""
    *before, last = derivation.steps
    return Written(derivation.problem, [step + "\n\n" for step in before] + [last])


def chat_text(derivation: Derivation) -> Written:
    """Write a derivation as the two-class head reads it: the chat template, and the separator after every step."""
    lead = f"{SYSTEM}<|im_start|>user\n{derivation.problem}<|im_end|>\n<|im_start|>assistant\n"
    return Written(lead, [step + SEPARATOR_TOKEN for step in derivation.steps])


def encode(derivations: list[Derivation], two_class: bool, tokenizer: Tokenizer) -> list[Example]:
    """Write and tokenize derivations the way a head of the given kind reads them."""
    written = [(chat_text if two_class else raw_text)(derivation) for derivation in derivations]
    encodings = tokenizer.encode_batch([each.text for each in written])
    return [_example(*each) for each in zip(derivations, written, encodings, strict=True)]


def _example(derivation: Derivation, written: Written, encoding: Encoding) -> Example:
    """Find by character offset, never by value, the tokens that close steps."""
    ends = [end for _, end in encoding.offsets]
    lead_end, *step_ends = itertools.accumulate(map(len, written.steps), initial=len(written.lead))
    closes = [ends.index(end) for end in step_ends]
    begins = next(index for index, end in enumerate(ends) if end > lead_end)
    return Example(encoding.ids, closes, derivation.labels, begins)


def train_tokenizer(two_class: bool) -> Tokenizer:
    """Train a byte-level BPE with Qwen2's structure; the special tokens come after its vocabulary, as in Qwen2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [raw_text(derivation).text for derivation in generate(TOKENIZER_SEED, 2000)]
    english, roles = ENGLISH.replace("\n", " "), f"system\n{INSTRUCTION}\nuser\nassistant\n"
    tokenizer.train_from_iterator(texts + [english] * 60 + [roles] * 600, trainer)
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, SEPARATOR_TOKEN] if two_class else [*SPECIAL_TOKENS])
    return tokenizer


def tokenizer_config(two_class: bool, tokenizer: Tokenizer, positions: int) -> dict[str, object]:
    """Return what `tokenizer_config.json` holds; only the two-class layout has a chat template."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {
        str(number): {"content": token.content} | flags
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    config: dict[str, object] = {
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": positions,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return config | ({"chat_template": CHAT_TEMPLATE} if two_class else {})
