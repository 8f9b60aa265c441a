"""The files of a checkpoint folder: which of them are read, their hash, and what is wrong with a folder without them.

Runtime, exporter and benchmark choose the same files, those that transformers would load.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_prm.errors import CheckpointError, CheckpointNotFoundError, EdgePRMError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "reward_head.pt"
OTHERS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
"""What else decides how a text becomes tokens."""
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # more than the specification allows
_BLOCK_BYTES = 4 << 20
_MAKE_TOKENIZER = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
_SLOW_TOKENIZERS = (("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files that hold the weights, in transformers' order: model.safetensors, else those that the index names.

    Files that neither is nor names are not read. Raises CheckpointNotFoundError that names what is missing,
    CheckpointError for an index that is damaged.
    """
    with reading(folder):
        if (folder / WEIGHTS).is_file():
            return [folder / WEIGHTS]
        if not (folder / INDEX).is_file():
            raise _no_weights(folder, name)
        files = sorted(set(read_index(folder, name).values()))
        missing = [file for file in files if Path(file).name != file or not (folder / file).is_file()]
    if missing:
        raise CheckpointNotFoundError(
            name,
            f"weight file {_some(missing)} is missing, and {INDEX} names it",
            "download it again, all of its files",
        )
    return [folder / file for file in files]


def read_index(folder: Path, name: str) -> dict[str, str]:
    """tensor -> file, as the index of a sharded checkpoint says; CheckpointError when it is damaged."""
    weight_map = read_json(folder / INDEX, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map of tensors and files; download it again")
    return weight_map


def checkpoint_files(folder: Path, name: str | None = None) -> list[Path]:
    """All files of a checkpoint that decide its rewards: config, tokenizer, chat template, weights, index and head."""
    weights = weight_files(folder, name or folder.name)
    index = [] if weights == [folder / WEIGHTS] else [folder / INDEX]
    with reading(folder):
        small = [path for part in (CONFIG, TOKENIZER, HEAD, *OTHERS) for path in sorted(folder.glob(part))]
        return [*(path for path in small if path.is_file()), *index, *weights]


def checkpoint_sha256(folder: Path) -> str:
    """SHA-256 over `checkpoint_files`: over the lines that `sha256sum` prints for them, in the order of their names.

    Every byte of these files counts, and no other file does. Reads all weights: a gigabyte or two in a second.
    """
    total = hashlib.sha256()
    for path in sorted(checkpoint_files(folder), key=lambda path: path.relative_to(folder).as_posix()):
        total.update(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def check_files(folder: Path, name: str) -> None:
    """Before any work: is this a checkpoint, are its files here, and are they more than Git LFS pointers?"""
    with reading(folder):
        _check_kind(folder, name)
        pointers = [path for path in checkpoint_files(folder, name) if is_pointer(path)]
        if pointers:
            raise _pointer_error(pointers)
        if not (folder / TOKENIZER).is_file():
            raise _no_tokenizer(folder, name)


def read_json(path: Path, source: str) -> dict[str, Any]:
    """Return the JSON object in a file of the checkpoint `source`; CheckpointError when there is none."""
    try:
        with reading(path):
            data = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointNotFoundError:
        raise CheckpointNotFoundError(source, f"{path.name} is missing") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, EdgePRMError):
            raise
        if is_pointer(path):
            raise _pointer_error([path]) from None
        raise CheckpointError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of a large one that was not downloaded."""
    with reading(path):
        if path.stat().st_size > _POINTER_BYTES:
            return False
        with open(path, "rb") as file:
            return file.read(len(_POINTER)) == _POINTER


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's errors in the block into a CheckpointError that names the file that was read."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EdgePRMError):
            raise
        place = error.filename if isinstance(error.filename, str) else path
        if isinstance(error, FileNotFoundError):
            raise CheckpointNotFoundError(place, "there is no such file", "download the checkpoint again") from None
        raise CheckpointError(f"{place} cannot be read ({error.strerror or error}); the checkpoint needs it") from error


def _check_kind(folder: Path, name: str) -> None:
    """Folders that are something else than a checkpoint, each with the sentence that names it."""
    if (folder / "edge_prm.json").is_file():
        raise CheckpointError(f"{folder} is an edge-prm bundle already; give the checkpoint that it was exported from")
    if found := _names(folder, *ADAPTERS):
        raise CheckpointError(
            f"checkpoint {name} holds a LoRA adapter ({found[0]}): merge it into its base model first (peft: "
            "model.merge_and_unload(), then save_pretrained into a new folder, with the tokenizer)"
        )
    if (folder / CONFIG).exists():
        return
    if found := _names(folder, "*.gguf"):
        raise gguf_error(f"{folder}/{found[0]}")
    inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if inner := inner or _names(folder, "models--*"):  # the hub's cache itself
        choice = "that folder" if len(inner) == 1 else "one of these folders"
        raise CheckpointNotFoundError(name, f"{CONFIG} is missing", f"it lies in {_some(inner)}: give {choice}")
    if _names(folder, "params.json"):
        raise CheckpointNotFoundError(
            name, f"it has params.json and no {CONFIG}", "convert it to the layout of transformers first"
        )
    raise CheckpointNotFoundError(name, f"{CONFIG} is missing")


def gguf_error(place: object) -> CheckpointError:
    """The sentence for a GGUF file in the place of a checkpoint."""
    return CheckpointError(
        f"{place} is a GGUF file, whose weights are quantized already and which has no place for most reward heads; "
        "give the original checkpoint, a folder with config.json and safetensors (--gguf writes a GGUF bundle of it)"
    )


def _no_weights(folder: Path, name: str) -> CheckpointNotFoundError:
    if found := _names(folder, "pytorch_model*.bin", "*.pth", "model*.pt"):
        return CheckpointNotFoundError(
            name,
            f"{WEIGHTS} is missing (only safetensors are read, and it holds {found[0]})",
            "save it again with transformers: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    if found := _names(folder, "*.gguf"):
        return CheckpointNotFoundError(
            name,
            f"{WEIGHTS} is missing, and {found[0]} is a GGUF file",
            "give the original checkpoint with safetensors",
        )
    if found := _names(folder, "*.safetensors"):
        return CheckpointNotFoundError(
            name,
            f"{WEIGHTS} is missing, and so is {INDEX}, which would say what is in {_some(found)}",
            "download the checkpoint again, all of its files",
        )
    return CheckpointNotFoundError(
        name, f"weight file {WEIGHTS} is missing (only safetensors are read)", "download it next to config.json"
    )


def _no_tokenizer(folder: Path, name: str) -> CheckpointNotFoundError:
    for files in _SLOW_TOKENIZERS:
        if all((folder / file).is_file() for file in files):
            return CheckpointNotFoundError(
                name,
                f"{TOKENIZER} is missing, and {' and '.join(files)} {'is' if len(files) == 1 else 'are'} there",
                f"make it from {'it' if len(files) == 1 else 'them'} with transformers: {_MAKE_TOKENIZER}",
            )
    return CheckpointNotFoundError(name, f"{TOKENIZER} is missing", "download it next to config.json")


def _pointer_error(paths: list[Path]) -> CheckpointError:
    what = (
        "are Git LFS pointers in place of the files" if len(paths) > 1 else "is a Git LFS pointer, not the file itself"
    )
    names = _some([path.name for path in paths])
    return CheckpointError(
        f"{paths[0].parent}: {names} {what}; run `git lfs pull` in that folder, or download it again"
    )


def _names(folder: Path, *patterns: str) -> list[str]:
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern)})


def _some(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
