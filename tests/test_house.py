"""Who may import whom, and the size and documentation of the source, as data. CONTRIBUTING explains the layout."""

from __future__ import annotations

import pytest
from house import Import, dataclass_fields, functions, imports_of, modules, path_of, undocumented, within

IMPORTS = [entry for name, tree in modules().items() for entry in imports_of(name, tree)]
OURS = [entry for entry in IMPORTS if entry.imported.split(".")[0] in ("edge_prm", "edge_prm_export", "edge_prm_bench")]

FORBIDDEN = [
    ("edge_prm", "edge_prm.cli", ("edge_prm.cli", "edge_prm.__main__")),
    ("edge_prm", "edge_prm_export", ("edge_prm.cli",)),
    ("edge_prm", "edge_prm_bench", ("edge_prm.cli",)),
    ("edge_prm_export", "edge_prm.cli", ()),
    ("edge_prm_export", "edge_prm_bench", ()),
    ("edge_prm_bench", "edge_prm.cli", ()),
    ("edge_prm_bench", "edge_prm_export", ()),
    ("edge_prm_export.optimum", "edge_prm_export.decoder", ()),
    ("edge_prm_export.optimum", "edge_prm_export.gguf", ()),
    ("edge_prm_export.onnx", "edge_prm_export.gguf", ()),
    ("edge_prm_export.gguf", "edge_prm_export.onnx", ()),
    ("edge_prm.backends", "edge_prm.encode", ("edge_prm.backends.onnx.session",)),  # the tokenizer file's name only
    ("edge_prm.backends", "edge_prm.judges", ()),
    ("edge_prm.backends", "edge_prm.trajectory", ()),
    ("edge_prm.judges", "edge_prm.prm", ()),
    ("edge_prm.records", "edge_prm.prm", ()),
]
"""(importer, imported, modules of the importer that may do it all the same)."""

ALLOWED = {
    "edge_prm.recipe": (),
    "edge_prm.arrays": (),
    "edge_prm.errors": (),
    "edge_prm.head": ("edge_prm.arrays",),
    "edge_prm.manifest_json": ("edge_prm.recipe",),
    "edge_prm.journal": ("edge_prm.errors", "edge_prm.output"),
    "edge_prm.records": ("edge_prm.errors", "edge_prm.split", "edge_prm.trajectory"),
    "edge_prm.judges": (
        "edge_prm.arrays", "edge_prm.backends", "edge_prm.batches", "edge_prm.encode", "edge_prm.errors", "edge_prm.head",
        "edge_prm.trajectory",
    ),
    "edge_prm.backends": (
        "edge_prm.arrays", "edge_prm.bundle", "edge_prm.cores", "edge_prm.encode", "edge_prm.errors", "edge_prm.head",
        "edge_prm.manifest", "edge_prm.notices", "edge_prm.recipe",
    ),
    "edge_prm_export.quantize": ("edge_prm.arrays", "edge_prm.errors"),
    "edge_prm_export.checkpoint": ("edge_prm",),
    "edge_prm_export.decoder": ("edge_prm", "edge_prm_export.checkpoint"),
    "edge_prm_export.job": ("edge_prm", "edge_prm_export.checkpoint", "edge_prm_export.progress"),
    "edge_prm_export.recipes": ("edge_prm",),
    "edge_prm_export.calibration": ("edge_prm", "edge_prm_export.job", "edge_prm_export.progress"),
}  # fmt: skip
"""importer -> all that it may import of ours, itself apart."""

HEAVY = (
    "onnxruntime", "onnx", "tokenizers", "torch", "transformers", "huggingface_hub", "jinja2", "ml_dtypes",
    "llama_cpp", "gguf", "optimum", "pyarrow", "matplotlib", "sklearn", "safetensors",
)  # fmt: skip
"""Modules that are imported in functions only: they cost seconds, or come with an extra."""
TORCH = ("torch", "transformers", "optimum")
TORCH_PLACES = ("edge_prm_export.optimum", "edge_prm_bench.reference", "edge_prm_bench.speed")
"""The only packages that may import torch, and then in functions."""

MODULE_LINES, FUNCTION_LINES, SHORT_SHARE, FIELDS = 300, 25, 0.9, 8
PACKAGES = ("edge_prm", "edge_prm_export", "edge_prm_bench")


def said(entries: list[Import]) -> str:
    return "\n".join(f"{entry.module} imports {entry.imported}" for entry in entries)


@pytest.mark.parametrize(("importer", "imported", "exempt"), FORBIDDEN)
def test_what_must_not_be_imported_is_not(importer: str, imported: str, exempt: tuple[str, ...]) -> None:
    wrong = [
        entry
        for entry in OURS
        if within(entry.module, importer)
        and within(entry.imported, imported)
        and not any(within(entry.module, name) for name in exempt)
    ]
    assert not wrong, said(wrong)


@pytest.mark.parametrize("importer", ALLOWED)
def test_a_package_imports_only_what_it_may(importer: str) -> None:
    allowed = (importer, *ALLOWED[importer])
    of_importer = [entry for entry in OURS if within(entry.module, importer)]
    wrong = [entry for entry in of_importer if not any(within(entry.imported, name) for name in allowed)]
    assert not wrong, said(wrong)


def test_every_name_in_the_rules_is_a_package_that_exists() -> None:
    names = {name for rule in FORBIDDEN for name in (*rule[:2], *rule[2])}
    names |= {*ALLOWED, *(name for allowed in ALLOWED.values() for name in allowed), *TORCH_PLACES}
    assert not sorted(names - modules().keys())


def test_heavy_modules_are_imported_in_functions_only() -> None:
    early = [entry for entry in IMPORTS if entry.imported.split(".")[0] in HEAVY and not (entry.late or entry.typing)]
    assert not early, said(early)


def test_the_command_line_imports_the_exporter_and_the_benchmark_in_functions_only() -> None:
    early = [
        entry
        for entry in OURS
        if within(entry.module, "edge_prm")
        and not within(entry.imported, "edge_prm")
        and not (entry.late or entry.typing)
    ]
    assert not early, said(early)


def test_torch_is_imported_only_where_it_may_be() -> None:
    wrong = [
        entry
        for entry in IMPORTS
        if entry.imported.split(".")[0] in TORCH and not any(within(entry.module, place) for place in TORCH_PLACES)
    ]
    assert not wrong, said(wrong)


def test_no_module_is_longer_than_300_lines() -> None:
    lengths = {name: len(path_of(name).read_text(encoding="utf-8").splitlines()) for name in modules()}
    assert not {name: n for name, n in lengths.items() if n > MODULE_LINES}


def test_nine_functions_of_ten_have_at_most_25_lines() -> None:
    long = [(place, lines) for place, lines in functions() if lines > FUNCTION_LINES]
    assert len(long) <= (1 - SHORT_SHARE) * len(functions()), sorted(long, key=lambda entry: -entry[1])


def test_no_dataclass_has_more_than_eight_fields() -> None:
    assert not [place for place, fields in dataclass_fields() if fields > FIELDS]


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_public_has_a_docstring(package: str) -> None:
    missing = [place for name, tree in modules().items() if within(name, package) for place in undocumented(name, tree)]
    assert not missing
