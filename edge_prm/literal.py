"""A tokenizer that keeps two kinds of text apart: pieces of the manifest, and text of the user.

transformers tokenizes a rendered conversation as one string, so a special token next to white space can take that white
space away, and only the first word of a text may get a blank in front. To get the same ids, everything is tokenized in
one call here too. But a literal `<extra_0>` of the user must stay plain text. So the tokens that the pieces use get
random names when the tokenizer is opened: pieces are written with those names, and the user cannot know them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_prm.errors import BundleIntegrityError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class LiteralTokenizer:
    """`names`: content of a token that pieces use -> its name in `tokenizer`; `ids`: content -> id; `special`: contents
    of all tokens that the file calls special."""

    tokenizer: Tokenizer
    names: dict[str, str] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    special: tuple[str, ...] = ()

    def named(self, piece: str) -> str:
        """Return a piece with its tokens under their other names; the longest token wins where two begin."""
        text = ""
        while piece:
            at, token = _first_token(piece, self.names)
            text += piece[:at] + self.names.get(token, "")
            piece = piece[at + len(token) :]
        return text


def open_literal(file: Path, pieces: Iterable[str], bos_id: int | None = None) -> LiteralTokenizer:
    """Open a tokenizer.json so that text never becomes one of the added tokens that `pieces` hold, nor `bos_id`.

    Other special tokens in a text are plain text as well; added tokens that are not special stay tokens. The tokenizer
    neither pads nor truncates nor adds tokens. Raises BundleIntegrityError for a file that is no tokenizer.
    """
    tokenizer = _open(file)
    tokens = tokenizer.get_added_tokens_decoder()
    added = {token.content: id_ for id_, token in tokens.items()}
    special = tuple(token.content for token in tokens.values() if token.special)
    guarded = {token: added[token] for piece in pieces for token in _tokens_of(piece, added)}
    renamed = list(guarded)
    first = None if bos_id is None else tokenizer.id_to_token(bos_id)
    if bos_id is not None and first is not None:
        # Text may become the token by its name, also where it is not an added token.
        becomes = bos_id in tokenizer.encode(first, add_special_tokens=False).ids
        renamed += [first] if becomes and first not in guarded else []
        guarded[first] = bos_id
    if not renamed:
        return LiteralTokenizer(tokenizer, {}, guarded, special)
    nonce = secrets.token_hex(16)
    names = {token: f"edgeprm{nonce}x{index}x" for index, token in enumerate(renamed)}
    tokenizer = _renamed(file, names)
    _check_ids(file, tokenizer, names, {**added, **{token: guarded[token] for token in renamed}})
    return LiteralTokenizer(tokenizer, names, guarded, special)


def _open(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleIntegrityError(file, f"not a tokenizer ({error})") from None
    _make_plain(tokenizer)
    return tokenizer


def _check_ids(file: Path, tokenizer: Tokenizer, names: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """BundleIntegrityError when the renamed tokens, or the other added tokens, do not have the ids of the file."""
    for token, name in names.items():
        if tokenizer.token_to_id(name) != ids[token]:
            raise BundleIntegrityError(file, f"its token {token!r} has no place of its own in the vocabulary")
    for token, id_ in ids.items():
        if token not in names and tokenizer.token_to_id(token) != id_:
            raise BundleIntegrityError(file, f"the ids of its added tokens depend on their order ({token!r})")


def _make_plain(tokenizer: Tokenizer) -> None:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.post_processor = None  # it adds special tokens, never wanted, and may trim blanks off offsets
    tokenizer.encode_special_tokens = True  # despite its name: special tokens in the text are plain text


def _tokens_of(piece: str, added: Iterable[str]) -> list[str]:
    """The added tokens of a piece, white space left out: a run of blanks that is a token is one in any text."""
    known = [token for token in added if token.strip()]
    tokens = []
    while piece:
        at, token = _first_token(piece, known)
        tokens += [token] if token else []
        piece = piece[at + len(token) :]
    return tokens


def _first_token(piece: str, tokens: Iterable[str]) -> tuple[int, str]:
    """Where the first token of a piece begins, and which it is; its length and "" when there is none."""
    places = ((piece.find(token), -len(token), token) for token in tokens if token in piece)
    at, _, token = min(places, default=(len(piece), 0, ""))
    return at, token


def _renamed(file: Path, names: dict[str, str]) -> Tokenizer:
    """The tokenizer of a file with other names for some tokens, in the model's vocabulary too: a model that makes such
    a token of plain text no longer does."""
    from tokenizers import Tokenizer

    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    data["post_processor"] = data["truncation"] = data["padding"] = None
    for token in data.get("added_tokens") or []:
        if token["content"] in names:
            # not special: `encode_special_tokens` would take it for plain text
            token.update(content=names[token["content"]], special=False)
    model = data["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if isinstance(model.get("merges"), list):
        model["merges"] = [pair for pair in model["merges"] if not _touches(pair, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    tokenizer = Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    _make_plain(tokenizer)
    return tokenizer


def _touches(pair: str | list[str], names: dict[str, str]) -> bool:
    """Whether a merge makes, or is made of, a renamed token."""
    first, _, second = pair.partition(" ") if isinstance(pair, str) else (pair[0], "", pair[1])
    return first in names or second in names or first + second in names
