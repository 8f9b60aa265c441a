"""`edge_prm.json` <-> frozen Manifest: everything about a checkpoint that the runtime must know, as data."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from edge_prm.aggregate import AGGREGATES
from edge_prm.errors import BundleIntegrityError, BundleNotFoundError, BundleVersionError
from edge_prm.head import HEADS

MANIFEST_NAME = "edge_prm.json"
FORMAT_VERSION = 2
"""2: `input` has trim_user, trim_assistant, refused and dated, and `fidelity` more, which a reader of format 1 does not
know. In format 1, `source.sha256` was over samples of the weights, and is no hash to compare with one of format 2."""
INPUT_FORMATS = ("raw", "template", "pieces", "tagged")
TRIMS = ("", *(f"{side}{what}" for side in ("left", "right", "both") for what in ("", "-newlines")))
NEEDED_FILES = {
    "onnx": ("tokenizer.json", "model.onnx", "model.onnx.data"),
    "gguf": ("tokenizer.json", "model.gguf"),
    "optimum": ("tokenizer.json", "model.onnx", "model.onnx.data"),
}
"""backend -> files that its bundles must list: a file that is not listed is never verified."""
_WITHIN = "within_tolerance"


@dataclass(frozen=True)
class Source:
    """Where the weights came from; `sha256` is over all files of the checkpoint that decide its rewards, every byte of
    them (see edge_prm.checkpoint_files.checkpoint_sha256)."""

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Architecture:
    """Shapes the engine needs to hold a KV cache of the model, and a benchmark to know the work in a token."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    intermediate: int


@dataclass(frozen=True)
class HeadSpec:
    """A reward head without its weights: `kind` is a key of edge_prm.head.HEADS, and `tokens` are (good, bad) of a
    `token_pair`, as they are written in the vocabulary."""

    kind: str
    default_aggregate: str = "last"
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputFormat:
    """How prompt and steps become token ids; a checkpoint's conventions are data, never code.

    `raw`: one string, prompt and completion with nothing between them; a step is read at the token that closes it.
    `template`: before + prompt + between + (step + separator token)...; a step is read at its separator token.
    `pieces`: before + prompt + between, steps and separators, each tokenized by itself; a step is read at its
    separator's last token.
    `tagged`: before + prompt + between + (step + separator) with `after` between them, one run of text but for special
    tokens in these pieces; a step is read at the token that ends its separator.

    `trim_user` and `trim_assistant` (left, right, both or ""; left-newlines and so on for newlines only): white space
    that the chat template takes off a message. The messages of a `template` are the prompt (user) and all steps
    (assistant); of a `tagged` chat, each step is one of the user, and the first begins with the prompt. `refused`:
    strings that the chat template would rewrite; a text that holds one is an InputError. `dated`: the date of the
    export, when the chat template writes the date.
    """

    format: str
    separator: str
    separator_id: int | None = None
    before: str = ""
    between: str = ""
    after: str = ""
    bos_id: int | None = None
    trim_user: str = ""
    trim_assistant: str = ""
    refused: tuple[str, ...] = ()
    dated: str = ""

    @property
    def separator_text(self) -> str | None:
        """The text that closes a step in a completion made for this judge, such as `<extra_0>` or ` ки`.

        None where it is blank lines (a raw text, TRL's newline), or the turns of a chat, which no completion holds.
        """
        if self.format == "raw" or not self.separator.strip() or (self.format == "tagged" and self.before):
            return None
        return self.separator


@dataclass(frozen=True)
class Recipe:
    """How the weights are held; the name of a GGUF bundle's is its ggml type, small.

    `reduce_range`: 7-bit weights, for processors that saturate in u8 x s8. `rotated`: of a GGUF, whether its residual
    stream is rotated; the int8 recipe of ONNX always does it.
    """

    name: str
    reduce_range: bool = False
    rotated: bool = False


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Golden:
    """A trajectory with its rewards: in full precision, and as the exporting device's kernels gave them."""

    prompt: str
    steps: tuple[str, ...]
    token_ids_sha256: str
    reference_rewards: tuple[float, ...]
    bundle_rewards: tuple[float, ...]


@dataclass(frozen=True)
class Fidelity:
    """Differences of reward between bundle and full precision over the golden trajectories, at export.

    A device's kernels are trusted up to `tolerance`, and up to `stream_tolerance` between step by step and one shot.
    """

    reference: str
    rewards: int
    mean_difference: float
    max_difference: float
    tolerance: float
    stream_tolerance: float = 0.0

    @property
    def within_tolerance(self) -> bool:
        """Whether the bundle was as close to full precision as its recipe has to be, on the device that exported it.

        In `edge_prm.json` it is `fidelity.within_tolerance`.
        """
        return self.max_difference <= self.tolerance


@dataclass(frozen=True)
class Manifest:
    edge_prm_version: str
    backend: str
    source: Source
    architecture: Architecture
    head: HeadSpec
    input: InputFormat
    context_length: int
    recipe: Recipe
    files: Mapping[str, FileEntry]
    golden: tuple[Golden, ...]
    fidelity: Fidelity | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        data = {"format": "edge-prm", **asdict(self)}
        if self.fidelity is not None:
            data["fidelity"][_WITHIN] = self.fidelity.within_tolerance
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, place: object) -> Manifest:
        """Parse a manifest; BundleVersionError when it is newer, BundleIntegrityError when it is anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleIntegrityError(place, f"not valid JSON ({error})") from None
        if not isinstance(data, dict) or data.pop("format", None) != "edge-prm":
            raise BundleIntegrityError(place, 'not a manifest of edge-prm (no "format": "edge-prm")')
        version = data.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise BundleIntegrityError(place, f"format_version is {version!r}")
        if version > FORMAT_VERSION:
            raise BundleVersionError(place, version, FORMAT_VERSION)
        try:
            marked = data["fidelity"].pop(_WITHIN, None) if isinstance(data.get("fidelity"), dict) else None
            manifest: Manifest = _typed(cls, data, "")
            _check(manifest)
            if manifest.fidelity is not None and marked not in (None, manifest.fidelity.within_tolerance):
                raise ValueError(f"fidelity.{_WITHIN} {reprlib.repr(marked)}")
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BundleIntegrityError(place, f"damaged manifest ({type(error).__name__}: {error})") from None
        return manifest


def _typed(kind: Any, value: Any, place: str) -> Any:
    """Return a JSON value as the type that a field declares; ValueError names the field when it is another."""
    arguments = get_args(kind)
    if type(None) in arguments:
        return None if value is None else _typed(arguments[0], value, place)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        known = {name: _typed(hints.get(name, Any), part, f"{place}{name}.") for name, part in value.items()}
        return kind(**known)  # type: ignore[operator]  # a class, and TypeError for a field too many or too few
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, f"{place}{index}.") for index, item in enumerate(value))
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return {name: _typed(arguments[1], item, f"{place}{name}.") for name, item in value.items()}
    right = type(value) in (int, float) and math.isfinite(value) if kind is float else type(value) is kind
    if right or kind is Any:
        return value
    raise ValueError(f"{place.rstrip('.')} is {reprlib.repr(value)}")


def _check(manifest: Manifest) -> None:
    """ValueError for a value of the right type that no exporter writes."""
    architecture, form, head = manifest.architecture, manifest.input, manifest.head
    for name in manifest.files:
        if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():  # not a file of the folder
            raise ValueError(f"file name {name!r}")
    if missing := [name for name in NEEDED_FILES.get(manifest.backend, ()) if name not in manifest.files]:
        raise ValueError(f"files do not list {', '.join(missing)}")
    sizes = {"context_length": manifest.context_length, **vars(architecture)}
    del sizes["model_type"]
    ids = [id_ for id_ in (form.separator_id, form.bos_id) if id_ is not None]
    for name, value, right in (
        ("head", head.kind, head.kind in HEADS),
        ("default_aggregate", head.default_aggregate, head.default_aggregate in AGGREGATES),
        ("input format", form.format, form.format in INPUT_FORMATS),
        ("separator_id", form.separator_id, form.format != "template" or form.separator_id is not None),
        ("separator", form.separator, form.separator),
        ("trim", (form.trim_user, form.trim_assistant), {form.trim_user, form.trim_assistant} <= {*TRIMS}),
        ("refused", form.refused, all(form.refused)),
        ("token ids", ids, all(0 <= id_ < architecture.vocabulary for id_ in ids)),
        ("golden", manifest.golden, all(_equally_long(golden) for golden in manifest.golden)),
        *((name, size, size > 0) for name, size in sizes.items()),
    ):
        if not right:
            raise ValueError(f"{name} {reprlib.repr(value)}")


def _equally_long(golden: Golden) -> bool:
    return 0 < len(golden.steps) == len(golden.reference_rewards) == len(golden.bundle_rewards)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle folder; BundleNotFoundError when there is none."""
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        missing = "no such folder" if not folder.exists() else f"no {MANIFEST_NAME} in it"
        raise BundleNotFoundError(folder, missing) from None
    except UnicodeDecodeError:
        raise BundleIntegrityError(path, "not UTF-8 text") from None
    except OSError as error:
        raise BundleIntegrityError(path, f"cannot be read ({error.strerror})") from None
    return Manifest.from_json(text, path)
