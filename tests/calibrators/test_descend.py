"""Coordinate descent: never worse, the least squares it claims, and nothing left to better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.calibrators.descend import descend
from qcompile.calibrators.gptq import gptq, output_error
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec, BlockWeight


def layer(seed: int, out: int = 12, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, width)) @ rng.standard_normal((width, width))
    return rng.standard_normal((out, width)).astype("f"), x.T @ x / len(x)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]), st.booleans())
def test_the_damped_error_never_grows(seed: int, bits: int, symmetric: bool) -> None:
    matrix, moments = layer(seed)
    start = fit_blocks(matrix, BlockSpec(bits, 16, symmetric))
    made = descend(matrix, start, moments, damping=0.0)
    assert output_error(matrix, made, moments) <= output_error(matrix, start, moments) * (1 + 1e-9)
    assert made.integers.min() >= made.spec.low
    assert made.integers.max() <= made.spec.high


def test_it_errs_less_than_gptq() -> None:
    matrix, moments = layer(1, 32, 128)
    first = gptq(matrix, moments, BlockSpec(3, 32)).weight
    made = descend(matrix, first, moments, damping=0.01)
    assert output_error(matrix, made, moments) < 0.95 * output_error(matrix, first, moments)


def test_scales_are_those_of_least_squares() -> None:
    matrix, moments = layer(2, 1, 32)
    start = fit_blocks(matrix, BlockSpec(4, 16))
    made = descend(matrix, start, moments, damping=0.0, rounds=0)
    assert np.array_equal(made.integers, start.integers)
    signed = start.integers.astype(float) - np.asarray(start.zero, float)[:, :, None]
    parts = np.zeros((2, 32))
    parts[0, :16], parts[1, 16:] = signed[0, 0], signed[0, 1]
    left, right = parts @ moments @ parts.T, parts @ moments @ matrix[0]
    assert made.scale[0] == pytest.approx(np.linalg.solve(left, right), rel=1e-4)


def test_no_change_of_one_integer_helps_any_more() -> None:
    matrix, moments = layer(3, 2, 16)
    made = descend(matrix, fit_blocks(matrix, BlockSpec(4, 16)), moments, damping=0.0, rounds=50)
    least = output_error(matrix, made, moments)
    for row, column, step in np.ndindex(2, 16, 2):
        other = made.integers.astype(int)
        other[row, 0, column] += 2 * step - 1
        if 0 <= other[row, 0, column] <= 15:
            changed = replace(made, integers=other.astype(np.uint8))
            assert output_error(matrix, changed, moments) >= least * (1 - 1e-6)


def test_blocks_of_zeros_stay_finite() -> None:
    matrix, moments = layer(4)
    matrix[:, :16] = 0
    matrix[3] = 0
    start = fit_blocks(matrix, BlockSpec(4, 16))
    made: BlockWeight = descend(matrix, start, moments, damping=0.01)
    assert np.isfinite(made.scale).all()
    assert not made.values()[3].any()
