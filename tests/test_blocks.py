"""Blocks of llama.cpp's K-quants, against the gguf package; rounding on their grid, against rounding to the nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import need_engine
from hypothesis import given
from hypothesis import strategies as st
from tiny import opened, write_checkpoint

from edge_prm_export.gguf.kquants import BYTES, Q4_K, Q6_K, SUPER_BLOCK, grid_of, put_integers
from edge_prm_export.quantize.gptq import GPTQ
from edge_prm_export.quantize.grid import Grid

REASON = 'the other reader of these blocks is gguf: pip install "edge-prm[export]"'
NAMES = {Q4_K: "Q4_K", Q6_K: "Q6_K"}


def values_of(grid: Grid, integers: np.ndarray) -> np.ndarray:
    """[out, in] of integers `[out, in]`."""
    return (integers.T * grid.scales.repeat(grid.group_size, axis=0) + grid.minimums.repeat(grid.group_size, axis=0)).T


@given(seed=st.integers(0, 2**32), kind=st.sampled_from([Q4_K, Q6_K]), outputs=st.integers(1, 5))
def test_integers_on_a_grid_are_what_gguf_reads(seed: int, kind: int, outputs: int) -> None:
    gguf = pytest.importorskip("gguf", reason=REASON)
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (outputs, 3 * BYTES[kind])).astype(np.uint8)
    scales = rng.uniform(1e-3, 0.1, (outputs, 3, 2)).astype("<f2").view(np.uint8)
    place = slice(0, 4) if kind == Q4_K else slice(208, 210)
    data.reshape(outputs, 3, -1)[..., place] = scales[..., : place.stop - place.start]
    grid = grid_of(data, kind)
    integers = rng.integers(0, grid.q_max + 1, (outputs, 3 * SUPER_BLOCK)).astype(np.uint8)
    put_integers(data, kind, integers)
    read = gguf.dequantize(data, gguf.GGMLQuantizationType[NAMES[kind]])
    assert np.allclose(read, values_of(grid, integers), rtol=1e-6, atol=1e-6)
    after = grid_of(data, kind)
    assert np.array_equal(after.scales, grid.scales)
    assert np.array_equal(after.minimums, grid.minimums)


def test_compensation_lowers_the_error_of_the_product() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((128, 128)) * (np.arange(128) < 20)[:, None] + 0.1 * rng.standard_normal((128, 128))
    rows = (rng.standard_normal((2000, 128)) @ mixing).astype(np.float32)
    weight = rng.standard_normal((48, 128)).astype(np.float32)
    runs = weight.reshape(48, 4, 32)
    low, high = runs.min(axis=2), runs.max(axis=2)
    grid = Grid(((high - low) / 15).T.copy(), low.T.copy(), 32, 15)
    nearest = np.rint((weight.T - grid.minimums.repeat(32, 0)) / grid.scales.repeat(32, 0)).clip(0, 15)
    found = GPTQ(rows).quantize_to_grid(weight, grid)
    assert found.max() <= 15
    errors = [np.linalg.norm(rows @ (values_of(grid, integers.T) - weight).T) for integers in (nearest, found)]
    assert errors[1] < 0.7 * errors[0]


def test_a_run_of_zeros_stays_zero() -> None:
    grid = Grid(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), 32, 15)
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    assert (GPTQ(rows).quantize_to_grid(np.zeros((3, 64), np.float32), grid) == 0).all()


def test_a_bundle_in_few_bits_is_closer_for_it(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through llama.cpp: a model wide enough for K-quants, with and without compensation."""
    need_engine("gguf")
    from edge_prm.manifest import read_manifest
    from edge_prm_export import export
    from edge_prm_export.gguf import bundle as gguf_bundle

    shapes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    source = write_checkpoint(tmp_path / "source", tokenizer_file, dtype="fp32", **shapes)
    assert opened(source).config.head_dim == 64
    differences, options = [], {"gguf": True, "gguf_type": "Q4_K_M", "rotate": False}
    for name in ("with", "without"):
        folder = export(str(source), tmp_path / name, **options)  # type: ignore[arg-type]
        fidelity = read_manifest(folder).fidelity
        assert fidelity is not None
        differences.append(fidelity.mean_difference)
        monkeypatch.setattr(gguf_bundle, "compensate", lambda *_: iter(()))
    assert (tmp_path / "with" / "model.gguf").stat().st_size == (tmp_path / "without" / "model.gguf").stat().st_size
    assert differences[0] < differences[1]
