"""A checkpoint in torch, loaded by transformers: complete, or refused with the names of what is missing.

transformers fills missing tensors with random numbers and drops those that it does not know, both without an error.
Used for what only torch can do: to trace decoders of no known family, and to score in full precision.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_prm.errors import CheckpointError
from edge_prm.input_format import InputFormat
from edge_prm.trajectory import Trajectory
from edge_prm_export.checkpoint.files import Checkpoint
from edge_prm_export.checkpoint.loadable import for_transformers_4

_HEADS = ("score.", "v_head.", "lm_head.", "classifier.", "embed_out.")
_BUFFERS = (".inv_freq", ".masked_bias", ".attention.bias", ".attn.bias")
_CUSTOM_CLASSES = ("Qwen2ForProcessRewardModel",)
"""Classes outside transformers that are known to be a plain decoder and a head."""
_NAMED = 4
PROBES = (
    ("What is 2 + 3 * 4?", ("3 * 4 = 12", "2 + 12 = 14", "The answer is 14.")),
    ("  What is 2 + 3 * 4?  ", ("  3 * 4 = 12  ", " 2 + 12 = 14 ")),
)
"""Short texts to compare two tokenizers on; of the second one, a template or a token may trim the blanks."""


def load_causal_lm(checkpoint: Checkpoint, dtype: str = "fp32", device: str = "cpu", *, logits: bool = True) -> Any:
    """The language model; its output matrix may be random where `logits` are not wanted.

    CheckpointError that names the tensors that are missing, of another shape, or unknown to the model.
    """
    import transformers

    return _load(checkpoint, (transformers.AutoModelForCausalLM,), dtype, device, logits)


def load_decoder(checkpoint: Checkpoint, dtype: str = "fp32", device: str = "cpu") -> Any:
    """The decoder without an output matrix: its `last_hidden_state` is after the final norm."""
    import transformers

    # Some checkpoints' names are understood by one of the two only.
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModel)
    return decoder_of(_load(checkpoint, kinds, dtype, device, False))


def decoder_of(model: Any) -> Any:
    """The decoder within a language model."""
    return model.base_model if model.base_model is not model else getattr(model, "model", model)


def _load(checkpoint: Checkpoint, kinds: Sequence[Any], dtype: str, device: str, logits: bool) -> Any:
    import torch

    config = _config(checkpoint)
    first: CheckpointError | None = None
    for kind in kinds:
        try:
            with quiet():
                model, info = kind.from_pretrained(
                    checkpoint.folder,
                    config=config,
                    dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
                    trust_remote_code=False,
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are named below
                    output_loading_info=True,
                )
            _check_complete(checkpoint.name, model, info, logits)
        except CheckpointError as error:
            first = first or error
        except Exception as error:  # whatever torch or transformers can raise
            first = first or CheckpointError(
                f"checkpoint {checkpoint.name}: transformers {_version()} cannot load it ({_reason(error)})"
            )
        else:
            return model.to(device).eval()
    assert first is not None, "there is a kind"
    raise first


def _config(checkpoint: Checkpoint) -> Any:
    """The config as the installed transformers understands it."""
    import transformers

    raw, name = checkpoint.raw_config, checkpoint.name
    _check_classes(raw, name)
    if int(_version().split(".")[0]) < 5:
        raw = for_transformers_4(raw, name)
    try:
        kind = transformers.CONFIG_MAPPING[checkpoint.model_type]
    except KeyError:
        raise CheckpointError(
            f"checkpoint {name}: transformers {_version()} does not know model_type {checkpoint.model_type!r}"
        ) from None
    try:
        return kind.from_dict(raw)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {name}: transformers {_version()} cannot read its config.json ({_reason(error)})"
        ) from None


def _check_classes(config: dict[str, Any], name: str) -> None:
    """CheckpointError for a model that is defined by code of its own, which is never run."""
    import transformers

    custom = config.get("auto_map")
    for kind, place in custom.items() if isinstance(custom, dict) else ():
        for reference in place if isinstance(place, (list, tuple)) else (place,):
            model = str(reference).rpartition(".")[2]
            if not kind.startswith("AutoModel") or model in _CUSTOM_CLASSES or hasattr(transformers, model):
                continue
            raise CheckpointError(
                f"checkpoint {name}: config.json's auto_map asks for code of its own ({reference}), which edge-prm "
                "never runs, and what it computes is not known"
            )


def _check_complete(name: str, model: Any, info: dict[str, Any], logits: bool) -> None:
    """CheckpointError where a tensor of the model did not come from the checkpoint, or one of it goes nowhere."""
    output = model.get_output_embeddings()
    matrix = tuple(f"{path}." for path, module in model.named_modules() if module is output and output is not None)
    missing = sorted(key for key in info["missing_keys"] if logits or not key.startswith(matrix or ("\0",)))
    if missing:
        raise CheckpointError(
            f"checkpoint {name} lacks {_named(missing)}, which {type(model).__name__} needs; missing weights would be "
            "random: download the checkpoint again, or save it with all of them"
        )
    # names, or (name, its shape, the model's): releases differ
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    if mismatched:
        raise CheckpointError(
            f"checkpoint {name} has tensors of another shape than config.json says: {_named(mismatched)}"
        )
    unknown = sorted(
        key for key in info["unexpected_keys"] if not key.startswith(_HEADS) and not key.endswith(_BUFFERS)
    )
    if unknown:
        raise CheckpointError(
            f"checkpoint {name} holds {_named(unknown)}, which {type(model).__name__} does not use; it would be "
            "dropped, and the rewards would be those of another model"
        )


class OwnTokenizer:
    """transformers' own tokenizer of a checkpoint, to compare ours with; `name` says which, or why there is none.

    `answer` is what the assistant says of a good step, where steps are turns of a chat.
    """

    def __init__(self, folder: Path, form: InputFormat, answer: str = "+") -> None:
        import transformers

        self._form, self._answer = form, answer
        self._tokenizer: Any = None
        try:
            with quiet():
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:
            self.name = f"none: transformers {_version()} opens no tokenizer here ({_reason(error)})"
            return
        self.name = f"{type(self._tokenizer).__name__}, transformers {_version()}"
        self._special = tuple(self._tokenizer.get_added_vocab())
        self._turns = form.format == "tagged" and _is_chat(self._tokenizer, form.separator)

    def disagreement(self, trajectory: Trajectory, ids: Sequence[int]) -> str:
        """Why `ids` are not what transformers makes of a trajectory; "" where they are, or where it cannot be asked.

        A text that holds a special token's name is plain text to us and a token to transformers, on purpose.
        """
        texts = [trajectory.prompt, *(step.text for step in trajectory.steps)]
        if self._tokenizer is None or any(token in text for token in self._special for text in texts):
            return ""
        with quiet():
            theirs = _read(self._tokenizer, self._form, trajectory, self._answer if self._turns else None)
        ours = list(ids)
        if self._turns or self._form.format == "template":  # theirs goes on after what is read last
            theirs = theirs[: len(ours)]
        if theirs == ours:
            return ""
        pairs = zip(ours, theirs, strict=False)
        at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        return (
            f"tokenizer.json and transformers' tokenizer ({self.name}) disagree about a text from token {at} on "
            f"({_id(ours, at)} against {_id(theirs, at)}; {len(ours)} and {len(theirs)} tokens): the reason may be a "
            "token at the beginning, blanks that are trimmed, or a setting in tokenizer_config.json that "
            "tokenizer.json does not share"
        )


def _id(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "none"


def _read(tokenizer: Any, form: InputFormat, trajectory: Trajectory, answer: str | None) -> list[int]:
    """Token ids the way each convention's authors get them from transformers."""
    steps = [step.text for step in trajectory.steps]
    if form.format == "raw":
        return list(tokenizer(trajectory.prompt + trajectory.completion)["input_ids"])
    if form.format == "pieces":
        pieces = [trajectory.prompt, *(text for step in steps for text in (step, form.separator))]
        ids = [id_ for piece in pieces if piece for id_ in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
    if form.format == "template":
        turns = [trajectory.prompt, "".join(step + form.separator for step in steps)]
    elif answer is not None:
        asked = [trajectory.prompt + form.between + steps[0], *steps[1:]]
        turns = [text for step in asked for text in (step, answer)]
    else:
        text = form.after.join(step + form.separator for step in steps)
        return list(tokenizer(trajectory.prompt + form.between + text)["input_ids"])
    return list(tokenizer.apply_chat_template(_messages(turns), tokenize=True, return_dict=False))


def _messages(turns: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]


def _is_chat(tokenizer: Any, separator: str) -> bool:
    """Whether a tagged format's separator is what the chat template writes between two turns."""
    marks = ("edge-prm-user-3f1c", "edge-prm-assistant-3f1c")
    try:
        text = tokenizer.apply_chat_template(_messages(marks), tokenize=False)
    except Exception:  # no template, or one that cannot be rendered
        return False
    return f"{marks[0]}{separator}{marks[1]}" in text


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _version() -> str:
    import transformers

    return str(transformers.__version__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading and tracing warn of what is checked here; errors come as exceptions."""
    from transformers.utils import logging as hf_logging

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
