"""A bundle's rewards against a reference file made by `edge_prm_bench.reference`.

    python -m edge_prm_bench.fidelity BUNDLE DATA.jsonl reference.jsonl [--threads 2]

The last line is one JSON document.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

import edge_prm
from edge_prm_bench.traces import read_traces


@dataclass(frozen=True)
class Fidelity:
    """Absolute differences of step rewards, and Spearman's rank correlation of final rewards."""

    traces: int
    rewards: int
    mean: float
    p99: float
    maximum: float
    flips_at_half: float
    spearman_final: float


def compare(rewards: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Fidelity:
    """Compare step rewards trace by trace; both hold one list per trace, of equal lengths."""
    ours, theirs = np.concatenate([np.array(r) for r in rewards]), np.concatenate([np.array(r) for r in reference])
    difference = np.abs(ours - theirs)
    return Fidelity(
        traces=len(rewards),
        rewards=len(ours),
        mean=float(difference.mean()),
        p99=float(np.quantile(difference, 0.99)),
        maximum=float(difference.max()),
        flips_at_half=float(((ours >= 0.5) != (theirs >= 0.5)).mean()),
        spearman_final=spearman([r[-1] for r in rewards], [r[-1] for r in reference]),
    )


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank; NaN when one side is constant."""
    a, b = _ranks(np.array(left)), _ranks(np.array(right))
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else float("nan")


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=np.float64)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("reference", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(bundle: Path, data: Path, reference: Path, threads: int) -> None:
    """Compare BUNDLE with REFERENCE on the traces of DATA that REFERENCE holds."""
    known = [json.loads(line) for line in reference.read_text(encoding="utf-8").splitlines()]
    traces = read_traces(data, len(known))
    if [trace.id for trace in traces] != [row["id"] for row in known]:
        raise click.UsageError(f"{reference} was made from other data than {data}")
    with edge_prm.load(bundle, threads=threads) as prm:
        rewards = [score.rewards for score in prm.score_many(trace.trajectory for trace in traces)]
    result = compare(rewards, [row["rewards"] for row in known])
    click.echo(
        f"{result.rewards} rewards of {result.traces} traces: mean difference {result.mean:.5f}, 99% {result.p99:.4f}, "
        f"largest {result.maximum:.4f}, Spearman of final rewards {result.spearman_final:.4f}"
    )
    click.echo(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
