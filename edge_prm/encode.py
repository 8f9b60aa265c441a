"""Trajectory -> token ids and read positions: the one place where text meets tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_prm.errors import BundleIntegrityError, ContextLengthError
from edge_prm.manifest import Manifest
from edge_prm.trajectory import Trajectory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"


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

    Safe to use from several threads.
    """

    def __init__(self, tokenizer_file: Path, manifest: Manifest) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleIntegrityError(tokenizer_file, f"not a tokenizer ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.post_processor = None  # it adds special tokens, never wanted, and may trim blanks off offsets
        self._format = manifest.input
        self._context_length = manifest.context_length
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > manifest.architecture.vocabulary:
            raise BundleIntegrityError(
                tokenizer_file, f"it has {size} tokens and the model {manifest.architecture.vocabulary}"
            )
        self._special = sorted(
            (
                (token.content, id_)
                for id_, token in self._tokenizer.get_added_tokens_decoder().items()
                if token.special
            ),
            key=lambda pair: -len(pair[0]),
        )
        self._tokenizer.encode_special_tokens = True  # despite its name: special tokens in the text are plain text
        self._before = list(self._parts(self._format.before))
        self._between = list(self._parts(self._format.between))
        self._after, self._separator = list(self._parts(self._format.after)), list(self._parts(self._format.separator))
        self._separator_ids = self._literal(self._format.separator) if self._format.format == "pieces" else []

    def encode(self, trajectory: Trajectory) -> Encoded:
        """Return ids and read positions; ContextLengthError when the ids outgrow the model's context."""
        ids, read_at = getattr(self, f"_encode_{self._format.format}")(trajectory)
        if len(ids) > self._context_length:
            raise ContextLengthError(len(ids), self._context_length)
        return Encoded(np.array(ids, dtype=np.int64), tuple(read_at))

    def _encode_raw(self, trajectory: Trajectory) -> tuple[Sequence[int], Sequence[int]]:
        """One string; a step is read at the token that holds the last character of its text and separator."""
        encoding = self._tokenizer.encode(trajectory.prompt + trajectory.completion, add_special_tokens=False)
        starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.offsets))
        ends = []
        end = len(trajectory.prompt) + len(trajectory.lead)
        for step in trajectory.steps:
            end += len(step.text) + len(step.separator)
            ends.append(end)
        first = [] if self._format.bos_id is None else [self._format.bos_id]
        return first + encoding.ids, (np.searchsorted(starts, ends, side="left") - 1 + len(first)).tolist()

    def _encode_template(self, trajectory: Trajectory) -> tuple[Sequence[int], Sequence[int]]:
        """Template pieces may hold special tokens; the text between two of them is tokenized as one run."""
        separator = self._format.separator_id
        assert separator is not None, "the exporter writes it for every template"
        ids: list[int] = []
        read_at: list[int] = []
        run = ""
        parts: list[str | int] = [*self._before, trajectory.prompt, *self._between]
        for step in trajectory.steps:
            parts += [step.text, separator]
        for part in parts:
            if isinstance(part, str):
                run += part
                continue
            ids += self._plain(run)
            run = ""
            ids.append(part)
        # The separators are the last special tokens, one for each step; find their positions by counting back.
        position = len(ids)
        for step in reversed(trajectory.steps):
            position -= 1
            read_at.append(position)
            position -= len(self._plain(step.text))
        return ids, read_at[::-1]

    def _encode_tagged(self, trajectory: Trajectory) -> tuple[Sequence[int], Sequence[int]]:
        """As judges that answer with a token are asked: what stands between two special tokens is one run of text."""
        ids: list[int] = [] if self._format.bos_id is None else [self._format.bos_id]
        read_at: list[int] = []
        run, ends = "", []
        last = len(trajectory.steps) - 1
        parts: list[str | int | None] = [*self._before, trajectory.prompt, *self._between]  # None: read here
        for index, step in enumerate(trajectory.steps):
            parts += [step.text, *self._separator, None, *(self._after if index < last else ())]
        for part in [*parts, -1]:
            if isinstance(part, str):
                run += part
            elif part is None:
                ends.append(len(run))
            else:
                read_at += self._extend(ids, run, ends)
                run, ends = "", []
                ids.append(part)
        return ids[:-1], read_at

    def _extend(self, ids: list[int], run: str, ends: list[int]) -> list[int]:
        """Append a run of plain text to `ids`; return where in `ids` the tokens stand that hold its first `ends`
        characters' last one. An end of zero stands for the token before the run."""
        encoding = self._tokenizer.encode(run, add_special_tokens=False) if run else None
        starts = [] if encoding is None else [start for start, _ in encoding.offsets]
        places = [len(ids) - 1 + int(np.searchsorted(starts, end, side="left")) for end in ends]
        ids += [] if encoding is None else encoding.ids
        return places

    def _encode_pieces(self, trajectory: Trajectory) -> tuple[Sequence[int], Sequence[int]]:
        """As TRL's PRMTrainer tokenizes: prompt, then each step and the separator, every piece on its own."""
        ids = [] if self._format.bos_id is None else [self._format.bos_id]
        ids += self._plain(trajectory.prompt)
        read_at = []
        for step in trajectory.steps:
            ids += self._plain(step.text) + self._separator_ids
            read_at.append(len(ids) - 1)
        return ids, read_at

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def _literal(self, piece: str) -> list[int]:
        """Ids of a piece of the manifest, special tokens included."""
        ids: list[int] = []
        for part in self._parts(piece):
            ids += self._plain(part) if isinstance(part, str) else [part]
        return ids

    def _parts(self, piece: str) -> Iterator[str | int]:
        """Split a template piece at its special tokens, which become ids."""
        while piece:
            at, token, id_ = min(
                ((piece.find(token), token, id_) for token, id_ in self._special if token in piece),
                default=(len(piece), "", -1),
                key=lambda found: found[0],
            )
            if at:
                yield piece[:at]
            if token:
                yield id_
            piece = piece[at + len(token) :]
