"""The reward head: the last layers of a judge, from a hidden state to a reward.

One function applies it for llama.cpp, for the exporter's full-precision run and for traced models; ONNX graphs hold
the same arithmetic as nodes (`edge_prm_export.onnx.head`). A kind of head is one row of HEADS. numpy is imported when a
head is applied, because every command reads the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from edge_prm.arrays import AnyFloat, Float32

Layers: TypeAlias = "tuple[tuple[Float32, Float32], ...]"
"""(weight `[out, in]`, bias `[out]`) of each linear layer, float32, with ReLU between two layers."""


@dataclass(frozen=True)
class HeadKind:
    """What all heads of a kind share.

    `outputs`: 1 is read as sigmoid(output); 2 as softmax over (bad, good), of which class 1 is the reward. `tokens`:
    how many tokens of the vocabulary describe it. `aggregate`: the default aggregate, unless the checkpoint's
    convention names another.
    """

    outputs: int
    tokens: int
    aggregate: str


HEADS: dict[str, HeadKind] = {
    "sigmoid": HeadKind(outputs=1, tokens=0, aggregate="last"),
    "two_class": HeadKind(outputs=2, tokens=0, aggregate="min"),
    "token_class": HeadKind(outputs=2, tokens=0, aggregate="min"),
    "token_pair": HeadKind(outputs=2, tokens=2, aggregate="min"),
}
"""`sigmoid`: a linear layer with one output (ReasonFlux-PRM-1.5B, Skywork-o1-Open-PRM). `two_class`: two linear layers
(Qwen2.5-Math-PRM). `token_class`: one linear layer (TRL's PRMTrainer). `token_pair`: two rows of the output matrix, so
that the reward is P(good) / (P(good) + P(bad)) of the next token (Math-Shepherd, RLHFlow, ER-PRM)."""


@dataclass(frozen=True)
class Head:
    """The weights of a reward head, and how its output becomes a reward.

    `kind`: a key of HEADS. `layers`: see Layers; of a `token_pair`, the rows of the bad and of the good token.
    `tokens`: (good, bad), as they are written in the vocabulary. `default_aggregate`: how step rewards become a score
    when the caller names no aggregate; "" takes the default of the kind.
    """

    kind: str
    layers: Layers
    tokens: tuple[str, ...] = ()
    default_aggregate: str = ""

    def __post_init__(self) -> None:
        """Fill in the default aggregate. ValueError when the last layer has not the outputs of the kind."""
        if not self.default_aggregate:
            object.__setattr__(self, "default_aggregate", HEADS[self.kind].aggregate)
        outputs = len(self.layers[-1][0])
        if outputs != self.outputs:
            raise ValueError(f"a {self.kind} head has {self.outputs} outputs, and its last layer has {outputs}")

    @property
    def outputs(self) -> int:
        """The number of outputs of the last layer: 1 for sigmoid, 2 for softmax."""
        return HEADS[self.kind].outputs

    @property
    def reads_logits(self) -> bool:
        """Whether the head is made of rows of the output matrix, so that its outputs are logits of tokens."""
        return HEADS[self.kind].tokens > 0

    def apply(self, hidden: AnyFloat) -> Float32:
        """Return the rewards, float32 `[r]` in [0, 1], of hidden states after the final norm, float32 `[r, hidden]`.

        Each row is computed by itself, so that the bits of a reward do not depend on how many rows are read at once.
        """
        import numpy as np

        return np.array([_sigmoid(np.float64(_logits(self.layers, row))) for row in hidden], dtype=np.float32)

    def apply_to_all(self, hidden: Float32) -> Float32:
        """As `apply`, in one product over all rows and float32 throughout: for a full-precision run that reads every
        token of its texts. The last bits of a reward depend on how many rows are read."""
        return _sigmoid(_logits(self.layers, hidden))


def _logits(layers: Sequence[tuple[AnyFloat, AnyFloat]], hidden: AnyFloat) -> AnyFloat:
    """Logits `[...]` of hidden states `[..., hidden]`; softmax over two outputs is the sigmoid of their difference."""
    import numpy as np

    values = hidden
    for index, (weight, bias) in enumerate(layers):
        values = (np.maximum(values, 0) if index else values) @ weight.T + bias
    return values[..., 0] if values.shape[-1] == 1 else values[..., 1] - values[..., 0]


def _sigmoid(logits: Any) -> Any:
    import numpy as np

    with np.errstate(over="ignore"):  # exp may be infinite; the result is then 0, which is right
        return 1 / (1 + np.exp(-logits))
