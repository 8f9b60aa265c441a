"""Errors of a layer's outputs that cancel where rewards would see them.

GPTQ lets the input channels of a weight make up for each other's rounding, as far as inputs are correlated. Outputs can
do the same: a reward sees a layer's outputs `y` through few directions, so an error of one output is undone by small
changes of others. With derivatives `g` of rewards, `H` the second moments of inputs and `G` those of derivatives, the
mean square of what a weight's error `E` does to rewards is about tr(E.T G E H): GPTQ minimizes over inputs, and this
module over outputs. Source of the split: YAQA (arxiv.org/abs/2505.22988), here with a `G` of low rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_prm.arrays import AnyFloat, Float32

DAMPING = 1.0
"""Share of the mean diagonal added to `G`: a few hundred rows do not know the directions of other texts. On
Qwen2.5-1.5B, 0.3 costs more in the first layers than it gains in the last ones."""
TURNS = 8
"""Outputs are rounded in so many groups; each group makes up for the errors of those before."""


class OutputFeedback:
    """What the outputs of a weight `[out, in]` owe to those that are rounded already."""

    def __init__(self, derivatives: AnyFloat, turns: int = TURNS) -> None:
        """`derivatives` `[rows, out]` of rewards with respect to the outputs."""
        rows, self._outputs = derivatives.shape
        self._directions: Float32 = np.ascontiguousarray(derivatives.T, np.float32) / np.float32(np.sqrt(rows))
        diagonal = float((self._directions**2).sum() / self._outputs)
        self._damping = DAMPING * diagonal if diagonal > 0 else 1.0
        self._bounds = np.linspace(0, self._outputs, min(turns, self._outputs) + 1).astype(int).tolist()
        self._seen: AnyFloat | None = None

    def turns(self) -> Iterator[slice]:
        """Groups of outputs, in the order in which they are rounded."""
        self._seen = None
        for start, end in zip(self._bounds[:-1], self._bounds[1:], strict=True):
            yield slice(start, end)

    def owed(self, outputs: slice) -> AnyFloat | float:
        """What the weights of `outputs` `[out, in]` change by, so that rewards see least of the errors so far.

        Of all changes D of the outputs that are still free, the best is -(G_ff)^-1 G_fd E; `outputs` are the first.
        """
        if self._seen is None:
            return 0.0
        free = self._directions[outputs.start :]
        gram = free.T @ free
        gram[np.diag_indices_from(gram)] += np.float32(self._damping)
        return np.asarray(-np.linalg.solve(gram, self._directions[outputs].T).T @ self._seen)

    def add(self, outputs: slice, errors: AnyFloat) -> None:
        """`errors` `[out, in]` of `outputs`: what was stored, less the weights as they were."""
        seen = self._directions[outputs].T @ errors
        self._seen = seen if self._seen is None else self._seen + seen
