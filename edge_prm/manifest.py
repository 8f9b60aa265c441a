"""`edge_prm.json` <-> frozen Manifest: everything about a checkpoint that the runtime must know, as data."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from edge_prm.errors import BundleIntegrityError, BundleNotFoundError, BundleVersionError
from edge_prm.input_format import InputFormat
from edge_prm.manifest_checks import TRIMS as TRIMS
from edge_prm.manifest_checks import check_manifest
from edge_prm.manifest_json import FORMAT_VERSION as FORMAT_VERSION
from edge_prm.manifest_json import typed, upgraded
from edge_prm.recipe import Recipe as Recipe

MANIFEST_NAME = "edge_prm.json"
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
class FileEntry:
    """A file of a bundle: its SHA-256 in hexadecimal digits, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Golden:
    """A trajectory with the reward of each step: in full precision, and as the exporting device computed it.

    `token_ids_sha256`: see `edge_prm.encode.Encoded.sha256`.
    """

    prompt: str
    steps: tuple[str, ...]
    token_ids_sha256: str
    reference_rewards: tuple[float, ...]
    bundle_rewards: tuple[float, ...]


@dataclass(frozen=True)
class Fidelity:
    """Absolute differences of reward between bundle and full precision over the golden trajectories, at export.

    `reference` names what computed full precision, `reward_count` is the number of golden rewards. `tolerance` and
    `incremental_tolerance` are the recipe's (see `edge_prm.recipe.Tolerances`): a device's kernels are trusted up to
    them.
    """

    reference: str
    reward_count: int
    mean_difference: float
    max_difference: float
    tolerance: float
    incremental_tolerance: float = 0.0

    @property
    def within_tolerance(self) -> bool:
        """Whether the bundle was as close to full precision as its recipe has to be, on the device that exported it.

        In `edge_prm.json` it is `fidelity.within_tolerance`.
        """
        return self.max_difference <= self.tolerance


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from: its checkpoint, and the edge-prm and the manifest format that wrote it.

    `convention`: the name of the exporter's convention for the checkpoint, or "custom"; "" before format 3.
    """

    source: Source
    edge_prm_version: str
    convention: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Validation:
    """What a device's kernels are compared with: golden trajectories, and how far the export was from them."""

    golden: tuple[Golden, ...] = ()
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class Manifest:
    """What a bundle is: `edge_prm.json` in Python.

    `context_length` is the longest text in tokens. `files` are those of the bundle by name, all of them in its folder.
    In JSON the fields of `provenance` and `validation` are at the top level.
    """

    provenance: Provenance
    architecture: Architecture
    head: HeadSpec
    input: InputFormat
    context_length: int
    recipe: Recipe
    files: Mapping[str, FileEntry]
    validation: Validation = Validation()

    @property
    def source(self) -> Source:
        """The checkpoint."""
        return self.provenance.source

    @property
    def edge_prm_version(self) -> str:
        """The version of edge-prm that wrote the bundle."""
        return self.provenance.edge_prm_version

    @property
    def format_version(self) -> int:
        """The version of the manifest's format in the file that was read."""
        return self.provenance.format_version

    @property
    def golden(self) -> tuple[Golden, ...]:
        """Golden trajectories; empty while an export has not scored them."""
        return self.validation.golden

    @property
    def fidelity(self) -> Fidelity | None:
        """Differences over the golden trajectories at export; None where there are none."""
        return self.validation.fidelity

    @property
    def backend(self) -> str:
        """The engine that runs the bundle: a key of `edge_prm.recipe.ENGINES`."""
        return self.recipe.engine

    def to_json(self) -> str:
        """The text of `edge_prm.json`, in the current format."""
        values = asdict(self)
        provenance, validation = values.pop("provenance"), values.pop("validation")
        if self.fidelity is not None:
            validation["fidelity"][_WITHIN] = self.fidelity.within_tolerance
        data = {"format": "edge-prm", **provenance, **values, **validation, "format_version": FORMAT_VERSION}
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, place: object) -> Manifest:
        """Parse a manifest of this format or an older one; `place` is what messages call it.

        Raises BundleVersionError when it is newer, BundleIntegrityError when it is anything else.
        """
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
            return _from_values(data, version)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BundleIntegrityError(place, f"damaged manifest ({type(error).__name__}: {error})") from None


def _from_values(data: dict[str, Any], version: int) -> Manifest:
    """JSON values as a checked Manifest; ValueError or TypeError for anything that no exporter writes."""
    marked = data["fidelity"].pop(_WITHIN, None) if isinstance(data.get("fidelity"), dict) else None
    values = _typed_fields(upgraded(data, version))
    groups = {
        name: group(**{field.name: values.pop(field.name) for field in fields(group) if field.name in values})
        for name, group in _GROUPS.items()
    }
    manifest = Manifest(**groups, **values)
    check_manifest(manifest)
    if manifest.fidelity is not None and marked not in (None, manifest.fidelity.within_tolerance):
        raise ValueError(f"fidelity.{_WITHIN} {reprlib.repr(marked)}")
    return manifest


_GROUPS: dict[str, Any] = {"provenance": Provenance, "validation": Validation}
"""Fields of Manifest whose own fields are at the top level of the JSON."""


def _typed_fields(data: dict[str, Any]) -> dict[str, Any]:
    """Each top-level value as the type that its field declares; every one of the JSON's must be there."""
    declared = {
        name: hint for kind in (Manifest, Provenance, Validation) for name, hint in get_type_hints(kind).items()
    }
    for name in _GROUPS:
        del declared[name]
    if missing := [name for name in declared if name not in data and name != "fidelity"]:
        raise ValueError(f"no {', '.join(missing)}")
    return {name: typed(declared.get(name, Any), value, f"{name}.") for name, value in data.items()}


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
