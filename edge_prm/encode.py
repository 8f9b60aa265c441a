"""Trajectory -> token ids and read positions: the one place where text meets tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edge_prm.arrays import Int64
from edge_prm.errors import BundleIntegrityError, ContextLengthError, InputError
from edge_prm.input_format import InputFormat
from edge_prm.literal import open_literal
from edge_prm.manifest import Manifest
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

    ids: Int64
    read_at: tuple[int, ...]
    start: int = 0

    def sha256(self) -> str:
        """The hash of the ids, as the manifest keeps it for golden trajectories."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()


class Encoder:
    """Tokenizes the way the checkpoint's authors do, with one exception: text from the user is plain text, so a
    literal `<|im_start|>` or `<extra_0>` in it never becomes a special token.

    Safe to use from several threads. Raises BundleIntegrityError for a file that is no tokenizer, or not the model's.
    """

    def __init__(self, tokenizer_file: Path, manifest: Manifest) -> None:
        self._open(tokenizer_file, manifest.input, manifest.context_length, manifest.architecture.vocabulary)

    @classmethod
    def of_format(
        cls, tokenizer_file: Path, input_format: InputFormat, context_length: int, vocabulary: int
    ) -> Encoder:
        """An encoder before there is a manifest; `vocabulary` is the count of tokens that the model knows."""
        encoder = cls.__new__(cls)
        encoder._open(tokenizer_file, input_format, context_length, vocabulary)
        return encoder

    def _open(self, tokenizer_file: Path, input_format: InputFormat, context_length: int, vocabulary: int) -> None:
        # The blank lines of a raw text are the user's, and not a piece of the format.
        pieces = (
            input_format.before,
            input_format.between,
            input_format.after,
            "" if input_format.format == "raw" else input_format.separator,
        )
        self._literal = literal = open_literal(tokenizer_file, pieces, input_format.bos_id)
        self._tokenizer = literal.tokenizer
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > vocabulary:
            raise BundleIntegrityError(tokenizer_file, f"it has {size} tokens and the model {vocabulary}")
        self._format = input_format
        self._context_length = context_length
        before, between, after, separator = map(literal.named, pieces)
        self._named = replace(input_format, before=before, between=between, after=after, separator=separator)

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
        pieces = list(walk(self._named, trajectory))
        if self._format.format == "pieces":
            encoded = self._encode_pieces(pieces)
        else:
            encoded = self._encode_text(Layout.of(pieces), known)
        self._check_literal(encoded.ids, "".join(piece for piece in pieces if isinstance(piece, str)))
        self._check_separators(encoded)
        if len(encoded.ids) > self._context_length:
            raise ContextLengthError(len(encoded.ids), self._context_length)
        return encoded

    def _encode_pieces(self, pieces: Sequence[Piece]) -> Encoded:
        """Every piece is tokenized by itself, as TRL's PRMTrainer does."""
        ids: list[int] = []
        start, read_at = 0, []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            elif isinstance(piece, str):
                ids += self._tokenizer.encode(piece, add_special_tokens=False).ids if piece else []
            elif piece is Mark.READ:
                read_at.append(len(ids) - 1)
            else:
                start = len(ids)
        return Encoded(np.array(ids, dtype=np.int64), tuple(read_at), start)

    def _encode_text(self, layout: Layout, known: Encoded | None) -> Encoded:
        """The text is tokenized at once; a step is read at the token that holds the last character before its mark."""
        encoded = None if known is None else self._continued(layout, known)
        if encoded is not None:
            return encoded
        first = np.array(layout.first, dtype=np.int64)
        ids, starts = self._tokens(layout.text)
        read_at = np.searchsorted(starts, layout.ends, side="left") - 1 + len(first)
        start = int(np.searchsorted(starts, layout.begin, side="right")) - 1 + len(first)
        return Encoded(np.concatenate([first, ids]), tuple(read_at.tolist()), start)

    def _continued(self, layout: Layout, known: Encoded) -> Encoded | None:
        """The ids of a text whose first steps are `known`; None where the text has to be tokenized from its start.

        Ids of a closed step do not depend on what follows it. Whether those of the next step depend on what comes
        before is tried on the last known step: it is tokenized again, without the text before it.
        """
        count, ends = len(known.read_at), layout.ends
        if count < 2:
            return None
        cut, base = ends[count - 2], known.read_at[-2] + 1
        ids, starts = self._tokens(layout.text[cut:])
        last = known.ids[base : known.read_at[-1] + 1]
        follows = starts[len(last) : len(last) + 1].tolist() == [ends[count - 1] - cut]
        if not follows or ids[: len(last)].tolist() != last.tolist():
            return None
        new = np.searchsorted(starts + cut, ends[count:], side="left") - 1 + base
        return Encoded(np.concatenate([known.ids[:base], ids]), (*known.read_at, *new.tolist()), known.start)

    def _tokens(self, text: str) -> tuple[Int64, Int64]:
        """Ids of a text, and the index of the character that each begins with."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.offsets))
        return np.array(encoding.ids, dtype=np.int64), starts

    def _check_refused(self, trajectory: Trajectory) -> None:
        for marker in self._format.chat.refused:
            steps = [(f"step {index}", step.text) for index, step in enumerate(trajectory.steps)]
            for place, text in [("prompt", trajectory.prompt), *steps]:
                if marker in text:
                    raise InputError(
                        f"{place} holds {marker!r}, and this checkpoint's chat template rewrites such text; "
                        "remove it, or score the part of the text without it"
                    )

    def _check_literal(self, ids: Int64, text: str) -> None:
        """InputError when the text of the user became a token of the format by a way that no other name prevents."""
        for token, id_ in self._literal.ids.items():
            name = self._literal.names.get(token)
            wanted = (text.count(name) if name else 0) + (self._format.bos_id == id_)
            count = int(np.count_nonzero(ids == id_))
            if count > wanted:
                raise InputError(
                    f"the text becomes the token {token!r}, which only the format may put in; remove what looks like "
                    "it from the text"
                )
            if count < wanted:
                raise InputError(f"the token {token!r} is not read where the format puts it, next to this text")

    def _check_separators(self, encoded: Encoded) -> None:
        """InputError when the separator shares a token with a step, where the checkpoint reads at one certain token."""
        wanted = self._format.separator_id
        if wanted is None:
            return
        for step, at in enumerate(encoded.read_at):
            if encoded.ids[at] != wanted:
                raise InputError(
                    f"the separator {self._format.separator!r} after step {step} shares a token with the text next to "
                    "it, and the checkpoint reads rewards at the separator's own token; let the next step begin with "
                    "another kind of character, such as a number"
                )


class Mark(Enum):
    """A place between two pieces of text: `START` is before the first step, `READ` follows the token that is read."""

    START = "start"
    READ = "read"


Piece: TypeAlias = "str | int | Mark"
"""Text, the id of a token, or a mark."""


def walk(input_format: InputFormat, trajectory: Trajectory) -> Iterator[Piece]:
    """Yield the pieces of a trajectory in their order, for every format: this is the only place that knows it."""
    if input_format.bos_id is not None:
        yield input_format.bos_id
    prompt, steps = _texts(input_format, trajectory)
    yield input_format.before + prompt + input_format.between
    yield Mark.START
    for index, (text, separator) in enumerate(steps):
        yield input_format.after if index else ""
        yield text
        yield separator
        yield Mark.READ


@dataclass(frozen=True)
class Layout:
    """The pieces of a trajectory as one text.

    `first`: ids before the text. `begin`: index of the character at which the first step begins. `ends`: for each step,
    the index after the character at which it is read.
    """

    first: tuple[int, ...]
    text: str
    begin: int
    ends: tuple[int, ...]

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Layout:
        """Join the texts of pieces; ids may come before all text only."""
        first: list[int] = []
        texts: list[str] = []
        places: dict[Mark, list[int]] = {mark: [] for mark in Mark}
        length = 0
        for piece in pieces:
            if isinstance(piece, str):
                texts.append(piece)
                length += len(piece)
            elif isinstance(piece, int):
                first.append(piece)
            else:
                places[piece].append(length)
        return cls(tuple(first), "".join(texts), places[Mark.START][0], tuple(places[Mark.READ]))


def _texts(input_format: InputFormat, trajectory: Trajectory) -> tuple[str, list[tuple[str, str]]]:
    """The prompt, and for each step its text and its separator: in a raw text, the separators of the user."""
    if input_format.format == "raw":
        return trajectory.prompt + trajectory.lead, [(step.text, step.separator) for step in trajectory.steps]
    prompt, steps = _trimmed(input_format, trajectory)
    return prompt, [(text, input_format.separator) for text in steps]


def _trimmed(input_format: InputFormat, trajectory: Trajectory) -> tuple[str, list[str]]:
    """Prompt and steps without the white space that the chat template takes off the messages that they are in."""
    prompt, steps, rules = trajectory.prompt, [step.text for step in trajectory.steps], input_format.chat
    if not rules.trim_user and not rules.trim_assistant:
        return prompt, steps
    if input_format.format == "template":  # the prompt is a message, and all steps are another
        return trim(prompt, rules.trim_user), [
            _trim_side(steps[0], rules.trim_assistant, "left"),
            *steps[1:],
        ]
    # each step is a message of the user; the first begins with the prompt
    first = _trim_side(steps[0], rules.trim_user, "right")
    return _trim_side(prompt, rules.trim_user, "left"), [
        first,
        *(trim(step, rules.trim_user) for step in steps[1:]),
    ]


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
