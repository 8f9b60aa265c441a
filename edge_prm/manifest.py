"""`edge_prm.json` <-> frozen Manifest: everything about a checkpoint that the runtime must know, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_prm.errors import BundleIntegrityError, BundleNotFoundError, BundleVersionError

MANIFEST_NAME = "edge_prm.json"
FORMAT_VERSION = 1
HEAD_KINDS = ("sigmoid", "two_class", "token_class")
INPUT_FORMATS = ("raw", "template", "pieces")


@dataclass(frozen=True)
class Source:
    """Where the weights came from; `sha256` is over the checkpoint's own files, in the order of their names."""

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Architecture:
    """Shapes the engine needs to hold a KV cache of the model."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Head:
    """`sigmoid` (one output), `two_class` (class 1 of two, MLP) or `token_class` (class 1 of two, linear)."""

    kind: str
    default_aggregate: str = "last"


@dataclass(frozen=True)
class InputFormat:
    """How prompt and steps become token ids; a checkpoint's conventions are data, never code.

    `raw`: one string, prompt and completion with nothing between them; a step is read at the token that closes it.
    `template`: before + prompt + between + (step + separator token)...; a step is read at its separator token.
    `pieces`: prompt, steps and separators tokenized one by one; a step is read at its separator's last token.
    """

    format: str
    separator: str
    separator_id: int | None = None
    before: str = ""
    between: str = ""
    bos_id: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How the weights are held; `reduce_range` means 7-bit weights, for processors that saturate in u8 x s8."""

    name: str
    reduce_range: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


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
    """Differences of reward between bundle and full precision over the golden trajectories, at export."""

    reference: str
    rewards: int
    mean_difference: float
    max_difference: float
    tolerance: float


@dataclass(frozen=True)
class Manifest:
    edge_prm_version: str
    backend: str
    source: Source
    architecture: Architecture
    head: Head
    input: InputFormat
    context_length: int
    recipe: Recipe
    files: Mapping[str, FileEntry]
    golden: tuple[Golden, ...] = ()
    fidelity: Fidelity | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps({"format": "edge-prm", **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, place: object) -> Manifest:
        """Parse a manifest; BundleVersionError when it is newer, BundleIntegrityError when it is anything else."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BundleIntegrityError(place, f"not valid JSON ({error})") from None
        if not isinstance(data, dict) or data.pop("format", None) != "edge-prm":
            raise BundleIntegrityError(place, 'not a manifest of edge-prm (no "format": "edge-prm")')
        version = data.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise BundleIntegrityError(place, f"format_version is {version!r}")
        if version > FORMAT_VERSION:
            raise BundleVersionError(place, version, FORMAT_VERSION)
        try:
            manifest = _manifest(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleIntegrityError(place, f"damaged manifest ({type(error).__name__}: {error})") from None
        return manifest


def _manifest(data: dict[str, Any]) -> Manifest:
    sections: dict[str, type] = {
        "source": Source,
        "architecture": Architecture,
        "head": Head,
        "input": InputFormat,
        "recipe": Recipe,
    }
    for name, section in sections.items():
        data[name] = section(**data[name])
    data["files"] = {_plain_name(name): FileEntry(**entry) for name, entry in data["files"].items()}
    data["golden"] = tuple(_golden(**golden) for golden in data["golden"])
    if data.get("fidelity") is not None:
        data["fidelity"] = Fidelity(**data["fidelity"])
    manifest = Manifest(**data)
    if manifest.head.kind not in HEAD_KINDS:
        raise ValueError(f"head {manifest.head.kind!r}")
    if manifest.input.format not in INPUT_FORMATS:
        raise ValueError(f"input format {manifest.input.format!r}")
    return manifest


def _plain_name(name: str) -> str:
    """A file of a bundle lies in its folder; a manifest that points elsewhere is not ours."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"file name {name!r}")
    return name


def _golden(**fields: Any) -> Golden:
    frozen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Golden(**frozen)


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
    return Manifest.from_json(text, path)
