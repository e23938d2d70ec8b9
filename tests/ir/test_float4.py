"""NVFP4: the grid, scales that fit it, and what a block may lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.ir.float4 import BLOCK, LARGEST, LARGEST_SCALE, global_scale, round_float4

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def test_numbers_on_the_grid_stay_as_they_are() -> None:
    matrix = np.concatenate([GRID, -GRID])[None].astype(np.float32)
    assert np.array_equal(round_float4(matrix).floats(), matrix)


def test_blocks_of_zeros_and_of_small_numbers_beside_large_ones() -> None:
    matrix = np.zeros((2, 2 * BLOCK), np.float32)
    matrix[1, :BLOCK] = 1000.0
    matrix[1, BLOCK:] = 1e-6
    made = round_float4(matrix)
    found = made.floats()
    assert not found[0].any()
    assert found[1, :BLOCK] == pytest.approx(1000.0, rel=0.07)
    assert np.isfinite(found).all()
    assert not found[1, BLOCK:].any(), "2^-9 of the largest scale is the least there is"
    assert np.isfinite(made.scales.astype(np.float32)).all()


def test_a_scale_that_suits_the_others_may_be_taken() -> None:
    """5 lies in the middle between 4 and 6: with another scale it does not."""
    matrix = np.full((1, BLOCK), 5.0, np.float32)
    matrix[0, 0] = 6.0
    assert np.square(round_float4(matrix).floats() - matrix).sum() < BLOCK - 1


@given(st.integers(0, 2**31), st.floats(1e-4, 1e4))
def test_every_number_is_within_a_step_of_its_block(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.standard_normal((4, 3 * BLOCK)) * size).astype(np.float32)
    found = round_float4(matrix).floats()
    peaks = np.abs(matrix).reshape(4, 3, BLOCK).max(-1)
    errors = np.abs(found - matrix).reshape(4, 3, BLOCK).max(-1)
    assert (errors <= 0.3 * peaks).all()
    assert np.square(found - matrix).sum() < 0.02 * np.square(matrix).sum()


def test_the_global_scale_of_nothing_is_a_usable_number() -> None:
    assert global_scale(0.0) == 1.0
    assert global_scale(LARGEST * LARGEST_SCALE) == 1.0
