"""A checkpoint's tokenizer, as the exporter needs it: opened, and asked for single tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_prm.encode import TOKENIZER_NAME
from edge_prm.errors import CheckpointError, CheckpointNotFoundError
from edge_prm_export.checkpoint import Checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Open the checkpoint's tokenizer; CheckpointError when it cannot be read or has more tokens than the model."""
    from tokenizers import Tokenizer

    path = checkpoint.folder / TOKENIZER_NAME
    if not path.is_file():
        raise CheckpointNotFoundError(checkpoint.name, f"{TOKENIZER_NAME} is missing")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again") from None
    size, rows = tokenizer.get_vocab_size(with_added_tokens=True), checkpoint.config.vocabulary
    if size > rows:
        raise CheckpointError(f"{path} has {size} tokens and config.json a vocab_size of {rows}; they do not match")
    return tokenizer


def token_id(checkpoint: Checkpoint, tokenizer: Tokenizer, token: str, option: str = "--separator") -> int:
    """Return the id of a special token; CheckpointError when the tokenizer does not know it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        path = checkpoint.folder / TOKENIZER_NAME
        raise CheckpointError(f"{path} has no token {token!r}; name the right one with {option}")
    return int(found)


def leading_id(checkpoint: Checkpoint, tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, or None; CheckpointError when it puts more."""
    plain, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    added = len(full) - len(plain)
    if added == 0:
        return None
    if added > 1 or full[1:] != plain:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its tokenizer adds {added} tokens to every text, and not one in front; "
            "which of them a reward is read behind is not known"
        )
    return int(full[0])
