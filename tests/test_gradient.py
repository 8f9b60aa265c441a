"""Derivatives of rewards: those of torch's autograd, for every family and head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HEADS
from tiny import FAMILIES, opened, write_checkpoint

from edge_prm.encode import Encoded
from edge_prm.head import Head
from edge_prm_export.checkpoint.head import read_head
from edge_prm_export.decoder.arithmetic import rms
from edge_prm_export.decoder.gradient import feed_forward_derivatives, reward_derivatives
from edge_prm_export.decoder.reference import ReferenceRun
from edge_prm_export.decoder.transformed import TransformedDecoder
from edge_prm_export.decoder.transforms import FoldNorms, RotateResidual, RotateValues

PATTERN = np.random.default_rng(7)
TEXTS = [
    Encoded(PATTERN.integers(0, 400, 40), (7, 23, 39)),
    Encoded(PATTERN.integers(0, 400, 25), (24,)),
]


def signs(count: int) -> np.ndarray:
    """What the logits are multiplied by before they are added up."""
    return np.random.default_rng(0).choice([-1.0, 1.0], count)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_are_those_of_autograd(tmp_path: Path, family: str, head: str) -> None:
    torch = pytest.importorskip("torch", reason='the oracle is torch: pip install "edge-prm[reference]"')
    tokenizer = FAMILIES[family].write_tokenizer(tmp_path / "tokenizer.json")
    folder = write_checkpoint(tmp_path / "source", tokenizer, head, "fp32", family=family)
    checkpoint = opened(folder)
    weights = read_head(checkpoint)
    found = reward_derivatives(checkpoint, weights, TEXTS)
    expected = _by_autograd(torch, folder, weights)
    assert len(found) == len(expected) == checkpoint.spec.shapes.layers
    for ours, (by_end, middle) in zip(found, expected, strict=True):
        order = np.argsort(-(by_end**2).sum(axis=1), kind="stable")
        scale = np.abs(by_end).max()
        assert scale > 0
        assert np.abs(ours.end - by_end[order][: len(ours.end)]).max() <= 1e-4 * scale
        assert np.abs(ours.feed_forward - rms(middle, checkpoint.spec.eps)[order][: len(ours.end)]).max() <= 1e-4


def _by_autograd(torch: Any, folder: Path, head: Head) -> list[tuple[np.ndarray, np.ndarray]]:
    """Layer by layer: the derivative with respect to its output, and the residual stream in its middle."""
    transformers = pytest.importorskip("transformers", reason='the oracle: pip install "edge-prm[reference]"')
    net = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    outputs: list[list[Any]] = [[] for _ in net.layers]
    middles: list[list[Any]] = [[] for _ in net.layers]

    def keep(index: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            tensor.retain_grad()
            outputs[index].append(tensor)

        return hook

    for index, layer in enumerate(net.layers):
        layer.register_forward_hook(keep(index))
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda module, inputs, at=index: middles[at].append(inputs[0].detach()[0])
        )
    logits = []
    for text in TEXTS:
        values = net(torch.from_numpy(text.ids)[None]).last_hidden_state[0, list(text.read_at)]
        for at, (weight, bias) in enumerate(head.layers):
            values = (torch.relu(values) if at else values) @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        logits.append(values[:, 0] if values.shape[-1] == 1 else values[:, 1] - values[:, 0])
    joined = torch.cat(logits)
    (joined * torch.from_numpy(signs(len(joined)))).sum().backward()
    return [
        (np.concatenate([tensor.grad[0].numpy() for tensor in of_layer]), torch.cat(middle).numpy())
        for of_layer, middle in zip(outputs, middles, strict=True)
    ]


def test_derivatives_do_not_change_with_exact_transforms(tmp_path: Path) -> None:
    tokenizer = FAMILIES["qwen2"].write_tokenizer(tmp_path / "tokenizer.json")
    checkpoint = opened(write_checkpoint(tmp_path / "source", tokenizer, "sigmoid", "fp32", family="qwen2"))
    derivatives = reward_derivatives(checkpoint, read_head(checkpoint), TEXTS)[0]
    inputs = replace(ReferenceRun(checkpoint, TEXTS).run_layer(0), derivatives=derivatives)
    shapes = checkpoint.spec.shapes
    found = []
    for transforms in ((), (RotateValues(shapes), FoldNorms(), RotateResidual(shapes))):
        decoder = TransformedDecoder(checkpoint, transforms)
        layer, known = decoder.layer(0), decoder.inputs(0, inputs).derivatives
        assert known is not None
        weights = (layer.gate.weight(), layer.up.weight(), layer.down.weight())
        found.append(feed_forward_derivatives(weights, known.feed_forward, known.end))
    plain, transformed = found
    for name in ("gate", "up", "inputs"):
        assert np.allclose(getattr(plain, name), getattr(transformed, name), rtol=1e-3, atol=1e-5), name


def test_texts_without_a_read_position_have_no_derivatives(tmp_path: Path) -> None:
    tokenizer = FAMILIES["qwen2"].write_tokenizer(tmp_path / "tokenizer.json")
    checkpoint = opened(write_checkpoint(tmp_path / "source", tokenizer, "sigmoid", "fp32", family="qwen2"))
    assert reward_derivatives(checkpoint, read_head(checkpoint), [Encoded(TEXTS[0].ids, ())]) == []
