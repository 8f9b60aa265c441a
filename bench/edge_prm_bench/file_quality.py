"""Quality of all bundles and references on one file: their rewards against its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edge_prm_bench.data import Data
from edge_prm_bench.results import QualityResults
from edge_prm_bench.scorers import Scorer
from edge_prm_bench.statistics.best_of_n import BestOfN, best_of_n
from edge_prm_bench.statistics.coverage import Omission, Scored, of_sharing, shared
from edge_prm_bench.statistics.steps import StepQuality, Threshold, fit_threshold, step_quality


class FileQuality(NamedTuple):
    """Results of a file, and what its figures skip."""

    results: QualityResults
    skipped: list[Omission]


def file_quality(
    data: Data, columns: Mapping[Scorer, Scored], fitted: Mapping[Scorer, Threshold], threshold: float
) -> FileQuality:
    """Compare the columns with the labels of the file, all on the traces that all of them have.

    Thresholds of F1: the one in `fitted` where there is one, else `threshold` and the best one of the file itself.
    """
    used = {scorer: column for scorer, column in columns.items() if column.indices}
    kept = shared(used.values())
    steps: list[StepQuality] = []
    chosen: list[BestOfN] = []
    for scorer, column in used.items():
        own = [fitted[scorer]] if scorer in fitted else _thresholds(data, column.only(kept), threshold)
        steps += [row for each in own if (row := step_quality(data, column, each, kept)) is not None]
        chosen += [row for row in [best_of_n(data, column, kept)] if row is not None]
    skipped: list[Omission] = []
    if any(trace.first_wrong is not None or trace.correct is not None for trace in data.traces):
        skipped = of_sharing(data, list(used.values()), kept, "quality")
    return FileQuality(QualityResults(tuple(steps), tuple(chosen)), skipped + _of_best_of_n(data, chosen))


def fitted_thresholds(data: Data, columns: Mapping[Scorer, Scored]) -> dict[Scorer, Threshold]:
    """The threshold with the highest F1 on a labelled file, for each scorer, on the traces that all of them have."""
    kept = shared(columns.values())
    return {
        scorer: Threshold(fit_threshold(data, column.only(kept).rewards), data.name)
        for scorer, column in columns.items()
    }


def _thresholds(data: Data, column: Scored, threshold: float) -> list[Threshold]:
    if all(trace.first_wrong is None for trace in data.traces):
        return [Threshold(threshold)]
    return [Threshold(threshold), Threshold(fit_threshold(data, column.rewards), data.name)]


def _of_best_of_n(data: Data, rows: Sequence[BestOfN]) -> list[Omission]:
    """Problems that best of N skips; they are the same for every row, and counted once."""
    counts: dict[str, int] = {}
    for row in rows:
        counts["best of N: problems with a candidate without a label or a reward"] = row.incomplete
        counts[f"best of N: problems with fewer than {row.last.n} candidates"] = row.small
    return [Omission(data.name, "", count, reason) for reason, count in counts.items() if count]
