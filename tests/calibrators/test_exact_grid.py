"""Weights from a checkpoint in few bits are found on their grid; real weights never are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.calibrators.exact_grid import exact_blocks, lies_on_grid
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec

Floats = npt.NDArray[np.float32]


def from_checkpoint(
    bits: int,
    block: int,
    *,
    out: int = 24,
    width: int = 256,
    seed: int = 0,
    symmetric: bool = False,
) -> Floats:
    """Random integers, float16 scales, whole zero points: what a dequantized export holds."""
    rng = np.random.default_rng(seed)
    top = 1 << bits
    # most weights lie near the middle: a part of a block seldom reaches both ends
    normal = rng.normal(top / 2, top / 8, (out, width // block, block))
    q = np.clip(np.rint(normal), 0, top - 1)
    z = np.full(q.shape[:2], top / 2) if symmetric else rng.integers(0, top, q.shape[:2])
    s = rng.uniform(0.001, 0.02, q.shape[:2]).astype(np.float16).astype(np.float32)
    return ((q - z[..., None]) * s[..., None]).reshape(out, width).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("stored", "asked"), [(128, 128), (32, 32), (128, 32), (64, 16)])
def test_values_of_a_checkpoint_come_back(bits: int, stored: int, asked: int) -> None:
    matrix = from_checkpoint(bits, stored)
    found = exact_blocks(matrix, BlockSpec(bits, asked))
    assert found is not None
    np.testing.assert_allclose(found.values(), matrix, rtol=3e-7)
    assert found.integers.max() < 1 << bits and found.zero is not None


def test_a_search_over_ranges_alone_misses_the_grid() -> None:
    matrix = from_checkpoint(4, 128)
    nearest = fit_blocks(matrix, BlockSpec(4, 32))
    assert np.abs(nearest.values() - matrix).max() > 0.05 * np.abs(matrix).max()


def test_rounded_products_are_taken_for_what_they_were() -> None:
    matrix = from_checkpoint(4, 128).astype(np.float16).astype(np.float32)
    found = exact_blocks(matrix, BlockSpec(4, 64))
    assert found is not None
    np.testing.assert_allclose(found.values(), matrix, rtol=2e-3)


def test_symmetric_grids_take_symmetric_weights_alone() -> None:
    matrix = from_checkpoint(4, 32, symmetric=True)
    for positive in (False, True):
        found = exact_blocks(matrix, BlockSpec(4, 32, symmetric=True, positive=positive))
        assert found is not None and found.zero is None
        np.testing.assert_allclose(found.values(), matrix, rtol=3e-7)
        assert not positive or found.scale.min() > 0
    uneven = from_checkpoint(4, 32)
    assert exact_blocks(uneven, BlockSpec(4, 32, symmetric=True)) is None


def test_the_largest_element_takes_the_longer_side() -> None:
    matrix = np.zeros((4, 32), np.float32)
    matrix[:, 0], matrix[:, 1] = 0.8, -0.7  # 8 and -7 steps: a negative scale has room for both
    found = exact_blocks(matrix, BlockSpec(4, 32, symmetric=True))
    assert found is not None and (found.scale < 0).all()
    np.testing.assert_allclose(found.values(), matrix, rtol=1e-6)
    assert exact_blocks(matrix, BlockSpec(4, 32, symmetric=True, positive=True)) is None


def test_larger_blocks_and_coarser_grids_than_the_checkpoint_s_are_refused() -> None:
    matrix = from_checkpoint(4, 32)
    assert not lies_on_grid(matrix, BlockSpec(4, 64))
    assert not lies_on_grid(matrix, BlockSpec(3, 32))
    assert not lies_on_grid(matrix, BlockSpec(8, 32))


def test_blocks_of_zeros_and_padding_are_on_any_grid() -> None:
    matrix = np.zeros((3, 40), np.float32)
    found = exact_blocks(matrix, BlockSpec(4, 32))
    assert found is not None and not found.values().any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4]), st.sampled_from([16, 32, 128]))
def test_real_weights_lie_on_no_grid(seed: int, bits: int, block: int) -> None:
    matrix = np.random.default_rng(seed).normal(0, 0.02, (16, 256)).astype(np.float32)
    assert exact_blocks(matrix, BlockSpec(bits, block)) is None


def test_one_row_off_the_grid_is_enough_to_refuse() -> None:
    matrix = from_checkpoint(4, 32, out=200)
    matrix[77] = np.random.default_rng(1).normal(0, 0.02, 256)
    assert exact_blocks(matrix, BlockSpec(4, 32)) is None


def test_infinity_is_on_no_grid() -> None:
    matrix = from_checkpoint(4, 32)
    matrix[3, 5] = np.inf
    assert exact_blocks(matrix, BlockSpec(4, 32)) is None
