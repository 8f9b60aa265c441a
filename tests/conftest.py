"""Fixtures: a tiny tokenizer, tiny checkpoints, bundles exported from them, and a PRM without an engine."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeModel, reward_of
from field_tokenizers import TOKENIZERS, set_tokenizer_config
from hypothesis import settings
from tiny import DEFAULT_SYSTEM_PROMPT, write_checkpoint, write_tokenizer

from edge_prm.backends.onnx.saturation import saturates
from edge_prm.bundle import Bundle
from edge_prm.encode import Encoder
from edge_prm.input_format import InputFormat
from edge_prm.manifest import Architecture, FileEntry, HeadSpec, Manifest, Provenance, Source, Validation
from edge_prm.prm import PRM
from edge_prm.recipe import ENGINES
from edge_prm.recipe import RECIPES as ALL_RECIPES
from edge_prm.trajectory import Trajectory

settings.register_profile("edge_prm", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("edge_prm")

BEFORE = f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
BETWEEN = "<|im_end|>\n<|im_start|>assistant\n"
HEADS = ("sigmoid", "two_class", "token_class")
RECIPES = ("int8", "fp32", "fp16", "w8a16", "int4", "w4a16")
ONNX_OPTIONS = {"w8a16": {"recipe": "int8", "device": "cuda"}, "w4a16": {"recipe": "int4", "device": "cuda"}}
"""Options of export for recipes that have no name of their own there."""
REDUCED = bool(saturates())
"""Whether int8 bundles need 7-bit weights on this machine: its 8-bit kernels saturate (no VNNI, no dot product)."""


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Callable[[str], Path]:
    """head -> folder of a checkpoint with that head; not to be changed."""
    pytest.importorskip("ml_dtypes", reason='checkpoints need ml_dtypes: pip install "edge-prm[export]"')
    made: dict[str, Path] = {}

    def make(head: str) -> Path:
        if head not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / f"tiny-{head}"
            made[head] = write_checkpoint(folder, tokenizer_file, head)
        return made[head]

    return make


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[str], Path]) -> Callable[..., Path]:
    """(head, recipe) -> folder of a bundle; not to be changed.

    A ggml type is a recipe for llama.cpp, and `optimum-int8` and `optimum-fp32` go through optimum.
    """
    made: dict[tuple[str, str], Path] = {}

    def make(head: str = "sigmoid", recipe: str = "int8") -> Path:
        backend = "onnx" if recipe in RECIPES else "optimum" if recipe.startswith("optimum-") else "gguf"
        need_engine(backend)
        from edge_prm_export import export

        if (head, recipe) not in made:
            folder = tmp_path_factory.mktemp("bundle") / f"{head}-{recipe}"
            options = {
                "onnx": {**ONNX_OPTIONS.get(recipe, {"recipe": recipe}), "reduce_range": REDUCED and recipe == "int8"},
                "optimum": {
                    "recipe": recipe.removeprefix("optimum-"),
                    "exporter": "optimum",
                    "reduce_range": REDUCED and recipe == "optimum-int8",
                },
                "gguf": {"gguf": True, "gguf_type": recipe},
            }[backend]
            made[head, recipe] = export(str(checkpoint_of(head)), folder, **options)  # type: ignore[arg-type]
        return made[head, recipe]

    return make


def need_engine(backend: str) -> None:
    """Skip, with the reason, where a backend's engine or exporter is not installed."""
    needed = {
        "onnx": {"onnx": "export", "onnxruntime": "cpu"},
        "gguf": {"gguf": "export", "llama_cpp": "gguf"},
        "optimum": {"onnx": "export", "onnxruntime": "cpu", "optimum.exporters.onnx": "optimum"},
    }
    for module, extra in needed[backend].items():
        pytest.importorskip(module, reason=f'this needs {module}: pip install "edge-prm[{extra}]"')


ManifestFor = Callable[..., Manifest]


@pytest.fixture(scope="session")
def manifest_for(tokenizer_file: Path) -> ManifestFor:
    """(input format, context length) -> manifest of a bundle that has no weights."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def make(form: str = "raw", context_length: int = 4096, **changes: object) -> Manifest:
        inputs = {
            "raw": InputFormat("raw", "\n\n"),
            "template": InputFormat("template", "<extra_0>", tokenizer.token_to_id("<extra_0>"), BEFORE, BETWEEN),
            "pieces": InputFormat("pieces", "\n"),
        }
        kinds = {"raw": "sigmoid", "template": "two_class", "pieces": "token_class"}
        fields: dict[str, object] = {
            "provenance": Provenance(Source("tiny", None, "0" * 64), "0.0.0"),
            "architecture": Architecture(
                "qwen2", 2, 64, 4, 2, 16, tokenizer.get_vocab_size(with_added_tokens=True), 128
            ),
            "head": HeadSpec(kinds[form], "last" if form == "raw" else "min"),
            "input": inputs[form],
            "context_length": context_length,
            "recipe": ALL_RECIPES["onnx", "fp32"],
            "files": {name: FileEntry("0" * 64, 1) for name in ENGINES["onnx"].files},
        }
        if validation := {name: changes.pop(name) for name in ("golden", "fidelity") if name in changes}:
            fields["validation"] = Validation(**validation)  # type: ignore[arg-type]
        return Manifest(**(fields | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()


@pytest.fixture
def prm(fake: FakeModel, tokenizer_file: Path, manifest_for: ManifestFor) -> Iterator[PRM]:
    """A PRM with the tiny tokenizer, raw input and the fake backend."""
    with PRM(Bundle(tokenizer_file.parent, manifest_for()), model=fake) as opened:
        yield opened


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Write lines (objects or bytes) to a file."""

    def write(*lines: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("sigmoid", "int8")


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture
def write(tmp_path: Path, tokenizer_file: Path) -> Callable[..., Path]:
    """Write a checkpoint into a folder of the test's own."""

    def make(head: str = "sigmoid", dtype: str = "fp32", shards: int = 1, **options: Any) -> Path:
        return write_checkpoint(tmp_path / "checkpoint", tokenizer_file, head, dtype, shards, **options)

    return make


@pytest.fixture(scope="session")
def demo_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Engine, or recipe of ONNX -> a bundle of the embedded demo; not to be changed."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        need_engine("gguf" if name == "gguf" else "onnx")
        from edge_prm_export import export

        if name not in made:
            folder = tmp_path_factory.mktemp("demo") / name
            options = {"gguf": {"gguf": True}, "onnx": {}, **ONNX_OPTIONS}.get(name, {"recipe": name})
            made[name] = export("demo", folder, **options)  # type: ignore[arg-type]
        return made[name]

    return make


@pytest.fixture(params=("onnx", "gguf"))
def demo(request: pytest.FixtureRequest, demo_of: Callable[[str], Path]) -> Path:
    return demo_of(request.param)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt here and in child processes, also where pytest runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def tokenizer_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = TOKENIZERS[name](folder / f"{len(made)}.json")
        return made[name]

    return make


@pytest.fixture(scope="module")
def checkpoint_with(tmp_path_factory: pytest.TempPathFactory, tokenizer_named: Callable[[str], Path]) -> Callable:
    """(tokenizer, head, settings) -> folder; not to be changed."""
    made: dict[str, Path] = {}

    def make(tokenizer: str = "byte level", head: str = "two_class", **changes: Any) -> Path:
        key = json.dumps([tokenizer, head, changes], default=str)
        if key not in made:
            folder = write_checkpoint(tmp_path_factory.mktemp("c") / "tiny", tokenizer_named(tokenizer), head)
            made[key] = set_tokenizer_config(folder, **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def encoder(tokenizer_file: Path, manifest_for: Callable[..., Manifest]) -> Encoder:
    return Encoder(tokenizer_file, manifest_for())


@pytest.fixture
def expected(encoder: Encoder) -> Callable[..., tuple[float, ...]]:
    """The rewards of a trajectory, each from its own prefix."""

    def rewards(prompt: str, steps: object, **options: str) -> tuple[float, ...]:
        encoded = encoder.encode(Trajectory.of(prompt, steps, **options))  # type: ignore[arg-type]
        return tuple(float(reward_of(encoded.ids[: at + 1])) for at in encoded.read_at)

    return rewards
