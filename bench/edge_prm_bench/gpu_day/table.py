"""The document of a run as Markdown: a column for each bundle and each torch model. Needs no other package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_prm_bench.report.cells import NONE, number, plural

Facts = Mapping[str, Any]


def markdown(document: Facts) -> str:
    """Hardware, the table of figures, notes, and what failed."""
    columns = [*document["bundles"], *document["torch"]]
    rows = [(label, *(cell(column) for column in columns)) for label, cell in _rows(document)]
    shown = [row for row in rows if any(cell != NONE for cell in row[1:])]
    parts = [_hardware(document), _table(("", *map(_name, columns)), shown), _limits(document), *document["notes"]]
    if document["failures"]:
        failed = [(entry["subject"], entry["figure"], entry["reason"]) for entry in document["failures"]]
        parts += ["**Failed or not begun**", _table(("what", "figure", "reason"), failed)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rows(document: Facts) -> list[tuple[str, Callable[[Facts], str]]]:
    """Label -> cell of a column."""
    lengths = sorted({speed["tokens"] for column in (*document["bundles"], *document["torch"])
                      for speed in column["prefill"]})  # fmt: skip
    eager = next((column for column in document["torch"] if column["attention"] == "eager"), None)
    rows: list[tuple[str, Callable[[Facts], str]]] = [
        ("size, GB", lambda column: _number(column, "export", "bytes", digits=".2f", scale=1e-9)),
        ("export, s", lambda column: _number(column, "export", "seconds", digits=".0f")),
    ]
    rows += [(f"prefill of {length} tokens, tokens/s", _prefill(length)) for length in lengths]
    rows += [(f"over torch eager at {length}", _ratio(length, eager)) for length in lengths[-2:] if eager]
    rows += [(f"share of the matrix limit at {length}", _share(length)) for length in lengths]
    return [*rows, *_OTHERS]


def _name(column: Facts) -> str:
    kind = column["recipe"] if "recipe" in column else f"torch {column['dtype']}, {column['attention']}"
    return f"{kind}, {column['device']}"


def _prefill(length: int) -> Callable[[Facts], str]:
    return lambda column: number(_speed(column, length), ".0f")


def _ratio(length: int, eager: Facts) -> Callable[[Facts], str]:
    def cell(column: Facts) -> str:
        ours, theirs = _speed(column, length), _speed(eager, length)
        comparable = column is not eager and column["device"] == eager["device"]
        return f"{ours / theirs:.2f}" if comparable and ours and theirs else NONE

    return cell


def _share(length: int) -> Callable[[Facts], str]:
    return lambda column: number((column.get("share_of_limit") or {}).get(str(length)), ".0%")


def _fidelity(name: str) -> Callable[[Facts], str]:
    """From the golden rewards of full precision, of a bundle's check or of torch."""
    return lambda column: number((column.get("check") or column.get("rewards") or {}).get(name))


def _energy(column: Facts) -> str:
    energy = column.get("energy")
    if not energy:
        return NONE
    return f"{energy['joules'] / energy['tokens'] * 1000:.1f} ({energy['watts']:.0f} W)"


def _speed(column: Facts, length: int) -> float | None:
    found = [speed["tokens_per_second"] for speed in column["prefill"] if speed["tokens"] == length]
    return float(found[0]) if found else None


def _number(column: Facts, *path: str, digits: str = ".4f", scale: float = 1.0) -> str:
    value: Any = column
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return NONE if value is None else number(value * scale, digits)


_OTHERS: tuple[tuple[str, Callable[[Facts], str]], ...] = (
    ("push of a step, s", lambda column: _number(column, "push", "first", "p50", digits=".4f")),
    ("tokens of the step", lambda column: _number(column, "push", "tokens", digits=".0f")),
    ("last pushes over the first", lambda column: _number(column, "push", "growth", digits=".2f")),
    ("rank of 16, shared prompt, s", lambda column: _number(column, "rank", "shared", "p50", digits=".3f")),
    ("16 candidates one by one, s", lambda column: _number(column, "rank", "alone", "p50", digits=".3f")),
    ("memory of the GPU, GB", lambda column: _number(column, "memory", "device_gb", digits=".2f")),
    ("peak main memory, GB", lambda column: _number(column, "memory", "host_gb", digits=".2f")),
    ("Memcpy nodes", lambda column: _number(column, "memcpy", digits=".0f")),
    ("energy of 1,000 tokens, J", _energy),
    ("check", lambda column: (column.get("check") or {}).get("verdict", NONE)),
    ("drift from the exporting CPU", lambda column: _number(column, "check", "device_drift")),
    ("step by step from one run", lambda column: _number(column, "check", "incremental_difference")),
    ("mean difference from fp32", _fidelity("mean_difference")),
    ("largest", _fidelity("max_difference")),
)


def _hardware(document: Facts) -> str:
    environment, shape = document["environment"], document["checkpoint"]["shape"]
    card, device = environment["card"], environment["device"]
    facts = [f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}"] if card else []
    facts += [f"{device['processor']['name']}, {plural(environment['threads'], 'thread')}", device["system"]]
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    model = f"random weights, {shape['num_hidden_layers']} layers, hidden {shape['hidden_size']}"
    return f"{'; '.join(facts)}; {versions}; {model}."


def _limits(document: Facts) -> str:
    limits = document["environment"]["limits"]
    return " ".join(f"The {of['kind']} GEMM of {of['device']} runs at {of['gops']:,.0f} GOPS." for of in limits)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
