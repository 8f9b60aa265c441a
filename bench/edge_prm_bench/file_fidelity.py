"""Fidelity of all bundles on one file: each bundle against each reference, and references against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edge_prm_bench.data import Data
from edge_prm_bench.results import Comparison, FidelityResults
from edge_prm_bench.scorers import Scorer
from edge_prm_bench.statistics import fidelity
from edge_prm_bench.statistics.coverage import Omission, Scored, of_sharing, shared

Columns = Mapping[Scorer, Scored]
"""Rewards of one file by bundle or reference."""
_Pair = tuple[Scorer, Scorer]


class FileFidelity(NamedTuple):
    """Results of a file, and what its figures skip."""

    results: FidelityResults
    skipped: list[Omission]


def file_fidelity(data: Data, bundles: Sequence[Scorer], columns: Columns, threshold: float) -> FileFidelity:
    """Compare the columns of `bundles` with the other columns, which are references.

    A bundle's own checkpoint in full precision gives quantization, another checkpoint capability; two references of one
    checkpoint give the noise floor. All rows of a table are computed on the traces that all of them have.
    """
    usable = [scorer for scorer, column in columns.items() if column.indices]
    measured = [scorer for scorer in bundles if scorer in usable]
    references = sorted((scorer for scorer in usable if scorer not in bundles), key=lambda scorer: scorer.rounding)
    if not references:
        reason = "fidelity: no reference was made from this file"
        return FileFidelity(FidelityResults(), [Omission(data.name, "", len(data.traces), reason)])
    own, floors = _own_pairs(measured, references), _floor_pairs(references)
    others = [(bundle, other) for bundle in measured for other in references if not bundle.same_checkpoint(other)]
    kept, skipped = _kept(data, columns, [*own, *floors], "fidelity")
    kept_others, skipped_others = _kept(data, columns, others, "agreement")
    results = FidelityResults(
        quantization=tuple(fidelity.quantization(data, *_ends(columns, pair), threshold, kept) for pair in own),
        noise_floor=tuple(fidelity.quantization(data, *_ends(columns, pair), threshold, kept) for pair in floors),
        capability=tuple(fidelity.capability(data, *_ends(columns, pair), kept_others) for pair in others),
        comparisons=(
            *(_comparison(data, columns, pair, kept, True) for pair in own),
            *(_comparison(data, columns, pair, kept_others, False) for pair in others),
        ),
    )
    return FileFidelity(results, skipped + skipped_others)


def _own_pairs(bundles: Sequence[Scorer], references: Sequence[Scorer]) -> list[_Pair]:
    """Each bundle with the most precise reference of its checkpoint; `references` are sorted by precision."""
    best = [(bundle, next((r for r in references if r.same_checkpoint(bundle)), None)) for bundle in bundles]
    return [(bundle, reference) for bundle, reference in best if reference is not None]


def _floor_pairs(references: Sequence[Scorer]) -> list[_Pair]:
    """Pairs of references of one checkpoint, the less precise one first."""
    return [
        (less_precise, more_precise)
        for index, more_precise in enumerate(references)
        for less_precise in references[index + 1 :]
        if more_precise.same_checkpoint(less_precise)
    ]


def _ends(columns: Columns, pair: _Pair) -> tuple[Scored, Scored]:
    return columns[pair[0]], columns[pair[1]]


def _comparison(data: Data, columns: Columns, pair: _Pair, kept: frozenset[int], of_quantization: bool) -> Comparison:
    bundle, reference = _ends(columns, pair)
    return Comparison(data, bundle.only(kept), reference.only(kept), of_quantization)


def _kept(data: Data, columns: Columns, pairs: Sequence[_Pair], table: str) -> tuple[frozenset[int], list[Omission]]:
    """The traces of a table, and what its columns have beyond them."""
    used = [columns[scorer] for scorer in dict.fromkeys(scorer for pair in pairs for scorer in pair)]
    kept = shared(used)
    return kept, of_sharing(data, used, kept, table)
