"""Trajectory -> token ids and read positions: the one place where text meets tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_prm.errors import BundleIntegrityError, ContextLengthError, InputError
from edge_prm.literal import open_literal
from edge_prm.manifest import InputFormat, Manifest
from edge_prm.trajectory import Trajectory

TOKENIZER_NAME = "tokenizer.json"
END_TOKENS = (
    *("</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"),
    *("<end_of_turn>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<｜end▁of▁sentence｜>"),
)
"""What generators end a text with. A judge that has no such token reads it as plain text."""


@dataclass(frozen=True)
class Encoded:
    """`ids`, int64 `[tokens]`, and for each step the index of the token at which its reward is read.

    `start`: index of the first token that holds text of the first step.
    """

    ids: npt.NDArray[np.int64]
    read_at: tuple[int, ...]
    start: int = 0

    def sha256(self) -> str:
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()


class Encoder:
    """Tokenizes the way the checkpoint's authors do, with one exception: text from the user is plain text, so a
    literal `<|im_start|>` or `<extra_0>` in it never becomes a special token.

    Safe to use from several threads. Raises BundleIntegrityError for a file that is no tokenizer, or not the model's.
    """

    def __init__(self, tokenizer_file: Path, manifest: Manifest) -> None:
        self._open(tokenizer_file, manifest.input, manifest.context_length, manifest.architecture.vocabulary)

    @classmethod
    def of_format(cls, tokenizer_file: Path, form: InputFormat, context_length: int, vocabulary: int) -> Encoder:
        """An encoder before there is a manifest; `vocabulary` is the count of tokens that the model knows."""
        encoder = cls.__new__(cls)
        encoder._open(tokenizer_file, form, context_length, vocabulary)
        return encoder

    def _open(self, tokenizer_file: Path, form: InputFormat, context_length: int, vocabulary: int) -> None:
        # Blank lines of a raw text are the user's, and no piece of ours.
        pieces = (form.before, form.between, form.after, "" if form.format == "raw" else form.separator)
        self._literal = literal = open_literal(tokenizer_file, pieces, form.bos_id)
        self._tokenizer = literal.tokenizer
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > vocabulary:
            raise BundleIntegrityError(tokenizer_file, f"it has {size} tokens and the model {vocabulary}")
        self._format = form
        self._context_length = context_length
        before, between, after, separator = map(literal.named, pieces)
        self._named = replace(form, before=before, between=between, after=after, separator=separator)
        self._first = [] if form.bos_id is None else [form.bos_id]
        self._separator_ids = self._ids(separator) if form.format == "pieces" else []

    @property
    def separator_text(self) -> str | None:
        """The text that closes a step in a text made for this judge; see InputFormat.separator_text."""
        return self._format.separator_text

    def special_at_end(self, text: str) -> str | None:
        """Return the token at the end of a text (white space aside) that a generator left there, such as `<|im_end|>`;
        None when there is none. It is scored as plain text. The format's own separator is not looked for."""
        bare = text.rstrip()
        known = {*END_TOKENS, *self._literal.special} - {self._format.separator, (self.separator_text or "").strip()}
        return max((token for token in known if token and bare.endswith(token)), key=len, default=None)

    def encode(self, trajectory: Trajectory, known: Encoded | None = None) -> Encoded:
        """Return ids and read positions, before any model work.

        `known`: the same trajectory's first steps, all of them closed by a separator; only the text from the last of
        these on is tokenized then, where that gives the same ids.

        Raises ContextLengthError when the ids outgrow the model's context, and InputError for text that the
        checkpoint's chat template would rewrite, or that becomes a token which the format puts in by itself.
        """
        self._check_refused(trajectory)
        if self._format.format == "pieces":
            encoded = self._encode_pieces(trajectory)
        else:
            encoded = self._encode_run(trajectory, known)
        if len(encoded.ids) > self._context_length:
            raise ContextLengthError(len(encoded.ids), self._context_length)
        return encoded

    def _encode_run(self, trajectory: Trajectory, known: Encoded | None) -> Encoded:
        """One text; a step is read at the token that holds the last character of its separator."""
        text, begin, ends = compose(self._named, trajectory)
        encoded = None if known is None else self._continued(text, ends, known)
        if encoded is None:
            ids, starts = self._tokens(text)
            read_at = np.searchsorted(starts, ends, side="left") - 1 + len(self._first)
            start = int(np.searchsorted(starts, begin, side="right")) - 1 + len(self._first)
            encoded = Encoded(np.concatenate([np.array(self._first, np.int64), ids]), tuple(read_at.tolist()), start)
        self._check_literal(encoded.ids, text)
        return encoded

    def _continued(self, text: str, ends: Sequence[int], known: Encoded) -> Encoded | None:
        """The ids of a text whose first steps are known; None where they are not those of the last step by itself.

        Ids of a closed step do not depend on what follows it. Whether those of the next depend on what comes before is
        found out at the last step that is known: it is tokenized again, without the text before it.
        """
        count = len(known.read_at)
        if count < 2:
            return None
        cut, base = ends[count - 2], known.read_at[-2] + 1
        ids, starts = self._tokens(text[cut:])
        last = known.ids[base : known.read_at[-1] + 1]
        follows = starts[len(last) : len(last) + 1].tolist() == [ends[count - 1] - cut]
        if not follows or ids[: len(last)].tolist() != last.tolist():
            return None
        new = np.searchsorted(starts + cut, ends[count:], side="left") - 1 + base
        return Encoded(np.concatenate([known.ids[:base], ids]), (*known.read_at, *new.tolist()), known.start)

    def _tokens(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids of a text, and the index of the character that each begins with."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.offsets))
        return np.array(encoding.ids, dtype=np.int64), starts

    def _encode_pieces(self, trajectory: Trajectory) -> Encoded:
        """As TRL's PRMTrainer tokenizes: prompt, then each step and the separator, every piece on its own."""
        text = self._named.before + trajectory.prompt + self._named.between
        ids = self._first + self._ids(text)
        start, read_at = len(ids), []
        for step in trajectory.steps:
            ids += self._ids(step.text) + self._separator_ids
            read_at.append(len(ids) - 1)
        made = np.array(ids, dtype=np.int64)
        self._check_literal(made, text + self._named.separator * len(trajectory.steps))
        return Encoded(made, tuple(read_at), start)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def _check_refused(self, trajectory: Trajectory) -> None:
        for marker in self._format.refused:
            steps = [(f"step {index}", step.text) for index, step in enumerate(trajectory.steps)]
            for place, text in [("prompt", trajectory.prompt), *steps]:
                if marker in text:
                    raise InputError(
                        f"{place} holds {marker!r}, and this checkpoint's chat template rewrites such text; "
                        "take it out, or score the part of the text without it"
                    )

    def _check_literal(self, ids: npt.NDArray[np.int64], text: str) -> None:
        """InputError when the text of the user became a token of the format by a way that no other name prevents."""
        for token, id_ in self._literal.ids.items():
            name = self._literal.names.get(token)
            wanted = (text.count(name) if name else 0) + self._first.count(id_)
            found = int(np.count_nonzero(ids == id_))
            if found > wanted:
                raise InputError(
                    f"the text becomes the token {token!r}, and only the format may put it in; take what looks like it "
                    "out of the text"
                )
            if found < wanted:
                raise InputError(f"the token {token!r} is not read where the format puts it, next to this text")


def compose(form: InputFormat, trajectory: Trajectory) -> tuple[str, int, list[int]]:
    """Return the text of a `raw`, `template` or `tagged` format, where in it the first step begins, and where each
    step's separator ends."""
    ends: list[int] = []
    if form.format == "raw":
        text = trajectory.prompt + trajectory.lead
        begin = len(text)
        for step in trajectory.steps:
            text += step.text + step.separator
            ends.append(len(text))
        return text, begin, ends
    prompt, steps = _trimmed(form, trajectory)
    text = form.before + prompt + form.between
    begin = len(text)
    for index, bare in enumerate(steps):
        text += (form.after if index else "") + bare + form.separator
        ends.append(len(text))
    return text, begin, ends


def _trimmed(form: InputFormat, trajectory: Trajectory) -> tuple[str, list[str]]:
    """Prompt and steps without the white space that the chat template takes off the messages that they are in."""
    prompt, steps = trajectory.prompt, [step.text for step in trajectory.steps]
    if form.format == "template":  # the prompt is a message, and all steps are another
        return trim(prompt, form.trim_user), [_trim_side(steps[0], form.trim_assistant, "left"), *steps[1:]]
    # each step is a message of the user; the first begins with the prompt
    first = _trim_side(steps[0], form.trim_user, "right")
    return _trim_side(prompt, form.trim_user, "left"), [first, *(trim(step, form.trim_user) for step in steps[1:])]


def trim(text: str, how: str) -> str:
    """Take white space (or newlines only) off a text, as Python's strip does; `how` is one of TRIMS."""
    return _trim_side(_trim_side(text, how, "left"), how, "right")


def _trim_side(text: str, how: str, side: str) -> str:
    """What `how` does to one side of a text."""
    sides, _, only = how.partition("-")
    if sides not in (side, "both"):
        return text
    characters = "\n" if only else None
    return text.lstrip(characters) if side == "left" else text.rstrip(characters)
