"""How the authors of each judge write prompt and steps, and where its head is: one row of data for each convention.

A checkpoint whose head is a tensor or a file of its own has one certain convention. A judge that answers with a label
token is an ordinary language model, so its convention has to be named, or its label tokens and its separator given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge_prm.errors import CheckpointError, InputError
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.head import REWARD_HEAD_NAME, VALUE_HEAD, head_place, head_places
from edge_prm_export.checkpoint.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CUSTOM = "custom"
_BLANKS = ("Ġ", "▁")
"""How the pieces of a vocabulary write a blank: byte-level BPE, and SentencePiece."""


@dataclass(frozen=True)
class Pieces:
    """Texts that the convention adds: `separator` closes each step, `between` is between prompt and first step, `after`
    between a separator and the next step. `one_token`: the separator must be one token, at which the reward is read."""

    separator: str = ""
    between: str = ""
    after: str = ""
    one_token: bool = False


@dataclass(frozen=True)
class Convention:
    """A judge's way of reading steps.

    `head`: a key of edge_prm.head.HEADS. `place`: the tensor or file that only such a head has; "" for rows of the
    output matrix. `writing`: a key of template.WRITINGS. `labels`: texts of the (good, bad) label tokens with their
    blanks, for a `token_pair`. `aggregate`: from step rewards to a score, when the caller names no aggregate.
    """

    name: str
    head: str
    place: str
    writing: str
    pieces: Pieces
    labels: tuple[str, ...] = ()
    aggregate: str = "min"


CONVENTIONS: dict[str, Convention] = {
    row.name: row
    for row in (
        Convention("reasonflux", "sigmoid", REWARD_HEAD_NAME, "raw", Pieces("\n\n"), aggregate="last"),
        Convention("qwen-math-prm", "two_class", "score.0.weight", "chat", Pieces("<extra_0>", one_token=True)),
        Convention("trl", "token_class", "score.weight", "pieces", Pieces("\n")),
        Convention(
            "math-shepherd", "token_pair", "", "tags", Pieces(" ки", " ", "\n", one_token=True), labels=(" +", " -")
        ),
        Convention("rlhflow", "token_pair", "", "turns", Pieces(between=" "), labels=("+", "-")),
        Convention("er-prm", "token_pair", "", "tags", Pieces(" ки", " ", "", one_token=True), labels=(" +", " -")),
        Convention("skywork-o1", "sigmoid", VALUE_HEAD, "texts", Pieces("\n", "\n", one_token=True)),
    )
}
"""Sources: ReasonFlux (Gen-Verse/ReasonFlux, reasonflux_prm), Qwen2.5-Math-PRM (its model card), TRL
(trl/trainer/prm_trainer.py), Math-Shepherd (the card of peiyi9979/math-shepherd-mistral-7b-prm), RLHFlow
(RLHFlow/RLHF-Reward-Modeling, math-rm), ER-PRM (hanningzhang/ER-PRM, evaluation/evaluate_math_reward_model.py),
Skywork-o1-Open-PRM (SkyworkAI/skywork-o1-prm-inference, prepare_input)."""

_CUSTOM_TAGS = Convention(CUSTOM, "token_pair", "", "tags", Pieces(between=" ", after="\n"))
_CUSTOM_TURNS = Convention(CUSTOM, "token_pair", "", "turns", Pieces(between=" "))


@dataclass(frozen=True)
class Given:
    """What the caller says of a checkpoint; None where the convention decides.

    `format`: a key of CONVENTIONS. `token_pair`: (good, bad), as they are written in the vocabulary.
    """

    format: str | None = None
    separator: str | None = None
    between: str | None = None
    after_step: str | None = None
    token_pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Chosen:
    """The convention of a checkpoint, with what the caller gave in its pieces. `tokens`: (good, bad) of a `token_pair`,
    as they are written in the vocabulary."""

    convention: Convention
    tokens: tuple[str, ...] = ()


def choose(checkpoint: Checkpoint, given: Given) -> Chosen:
    """Return the convention of a checkpoint: the named one, else the one that its head determines.

    Without either, label tokens with a separator are tags in a text, and label tokens alone are judged turns of a chat.
    Raises InputError for options that do not fit each other, HeadNotFoundError for a checkpoint without a head, and
    CheckpointError for a convention that does not fit the checkpoint; no weights are read.
    """
    if given.separator == "":
        raise InputError("separator is empty; give the text or the token that closes a step, or leave the option out")
    row = _row(checkpoint, given)
    _check_options(row, given)
    row = replace(row, pieces=_pieces(row.pieces, given))
    if given.token_pair is not None:
        return Chosen(row, given.token_pair)
    if not row.labels:
        return Chosen(row)
    tokenizer = open_tokenizer(checkpoint)
    return Chosen(row, tuple(_label_token(checkpoint, tokenizer, row.name, label) for label in row.labels))


def _row(checkpoint: Checkpoint, given: Given) -> Convention:
    if given.format is None:
        if given.token_pair is not None:
            return _CUSTOM_TURNS if given.separator is None else _CUSTOM_TAGS
        place = head_place(checkpoint)
        return next(row for row in CONVENTIONS.values() if row.place == place)
    row = CONVENTIONS.get(given.format)
    if row is None:
        raise InputError(f"format {given.format!r} is not known; choose one of {', '.join(CONVENTIONS)}")
    places = head_places(checkpoint)
    if row.place and row.place not in places:
        present = f"; it has {' and '.join(places)}" if places else ""
        raise unfit(checkpoint, row.name, f"the checkpoint has no {row.place}{present}")
    if row.place:
        head_place(checkpoint)  # refuses a second head
    return row


def _check_options(row: Convention, given: Given) -> None:
    """InputError for options that describe another kind of judge."""
    if row.place and given.token_pair is not None:
        raise InputError(f"format {row.name} reads a {row.head} head; leave --good-token and --bad-token out")
    if row.place and (given.between is not None or given.after_step is not None):
        raise InputError(
            f"between and after_step describe a token_pair head, and this checkpoint has a {row.head} head"
        )
    if row.writing == "turns" and given.separator is not None:
        raise InputError(f"format {row.name} writes each step as a turn of the chat; leave --separator out")
    if row.writing == "turns" and given.after_step is not None:
        raise InputError("after_step goes with separator; without one, the chat template says what is between steps")


def _pieces(pieces: Pieces, given: Given) -> Pieces:
    """The pieces of a convention, with those that the caller gave in their places."""

    def text(wanted: str | None, usual: str) -> str:
        return usual if wanted is None else wanted

    return Pieces(
        text(given.separator, pieces.separator),
        text(given.between, pieces.between),
        text(given.after_step, pieces.after),
        pieces.one_token,
    )


def _label_token(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str, label: str) -> str:
    """The piece of the vocabulary that is this text after a word: for ` +` it is `Ġ+` or `▁+`.

    CheckpointError unless there is exactly one such piece: with and without a blank, a label is another token.
    """
    written = dict.fromkeys(label.replace(" ", blank) for blank in ("", *_BLANKS) if blank or " " not in label)
    known = [piece for piece in written if tokenizer.token_to_id(piece) is not None]
    if len(known) != 1:
        what = f"more than one token ({', '.join(known)})" if known else f"no token ({' or '.join(written)})"
        raise unfit(checkpoint, name, f"the label {label!r} is {what} of the vocabulary")
    ids = token_ids_after(tokenizer, label)
    if ids != [tokenizer.token_to_id(known[0])]:
        raise unfit(checkpoint, name, f"the label {label!r} after a word becomes the tokens {ids}, not {known[0]!r}")
    return known[0]


def separator_id(checkpoint: Checkpoint, tokenizer: Tokenizer, convention: Convention) -> int:
    """The id of a separator that must be one token after a step; CheckpointError when it is not one."""
    ids = token_ids_after(tokenizer, convention.pieces.separator)
    if len(ids) != 1:
        what = f"the separator {convention.pieces.separator!r} is {len(ids)} tokens and must be one token"
        raise unfit(checkpoint, convention.name, what)
    return ids[0]


def token_ids_after(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that follows a digit; empty when it shares a token with the digit."""
    before, both = (tokenizer.encode(whole, add_special_tokens=False).ids for whole in ("4", f"4{text}"))
    return list(both[len(before) :]) if both[: len(before)] == before else []


def unfit(checkpoint: Checkpoint, name: str, reason: str) -> CheckpointError:
    """The error for a checkpoint that a convention does not fit."""
    return CheckpointError(
        f"checkpoint {checkpoint.name} does not fit the format {name}: {reason}; name another with --format, or "
        "describe it with --separator, --good-token and --bad-token"
    )
