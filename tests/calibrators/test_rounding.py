"""Rounding by output error: against brute force, and never worse than the nearest integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.calibrators.rounding import (
    SHRINKS,
    damped,
    factor,
    nearest,
    output_error,
    round_weights,
    shrink_scales,
)

LOW, HIGH = -127, 127


def made(groups: int, d: int, out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scaled weights, and the covariance of inputs that hang together."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, d, d)) * rng.uniform(0.1, 3, (groups, d, 1))
    return rng.standard_normal((groups, d, out)) * 20, np.matmul(mixing, mixing.transpose(0, 2, 1))


@given(
    groups=st.integers(1, 4), d=st.integers(1, 90), out=st.integers(1, 5), seed=st.integers(0, 999)
)
def test_never_worse_than_nearest(groups: int, d: int, out: int, seed: int) -> None:
    scaled, covariance = made(groups, d, out, seed)
    known, _ = factor(covariance)
    learned = output_error(round_weights(scaled, covariance, LOW, HIGH) - scaled, known)
    plain = output_error(nearest(scaled, LOW, HIGH) - scaled, known)
    assert (learned <= plain * (1 + 1e-9)).all()


def test_correlated_inputs_gain_decibels() -> None:
    """Neighbouring pixels: covariance 0.95 to the power of the distance."""
    scaled, _ = made(1, 64, 32, 0)
    place = np.arange(64)
    covariance = 0.95 ** np.abs(place[:, None] - place)[None]
    learned = output_error(round_weights(scaled, covariance, LOW, HIGH) - scaled, covariance).sum()
    plain = output_error(nearest(scaled, LOW, HIGH) - scaled, covariance).sum()
    assert 10 * np.log10(plain / learned) > 5


def test_independent_inputs_leave_the_nearest() -> None:
    scaled, _ = made(2, 30, 7, 1)
    alone = np.stack([np.diag(np.linspace(0.1, 9, 30))] * 2)
    np.testing.assert_array_equal(
        round_weights(scaled, alone, LOW, HIGH), nearest(scaled, LOW, HIGH)
    )


@pytest.mark.parametrize("seed", range(5))
def test_close_to_the_best_of_all(seed: int) -> None:
    """Four weights, each one of the four integers around it: 256 forms."""
    scaled, covariance = made(1, 4, 1, seed)
    known = damped(covariance)
    base = np.floor(scaled[0, :, 0])
    moves = np.array(list(itertools.product((-1, 0, 1, 2), repeat=4)), np.float64)
    errors = output_error((base + moves - scaled[0, :, 0])[:, :, None], known.repeat(256, 0))
    found = output_error(round_weights(scaled, covariance, LOW, HIGH, sweeps=9) - scaled, known)
    plain = output_error(nearest(scaled, LOW, HIGH) - scaled, known)
    best = errors.min()
    assert best * (1 - 1e-9) <= found[0, 0] <= max(1.5 * best, 0.5 * (best + plain[0, 0]))


def test_no_single_step_helps_any_more() -> None:
    scaled, covariance = made(2, 12, 3, 4)
    known, _ = factor(covariance)
    integers = round_weights(scaled, covariance, LOW, HIGH, sweeps=100)
    least = output_error(integers - scaled, known)
    for j, step in itertools.product(range(12), (-1, 1)):
        moved = integers.copy()
        moved[:, j] += step
        assert (output_error(moved - scaled, known) >= least * (1 - 1e-9)).all()


def test_limits_hold() -> None:
    scaled, covariance = made(1, 40, 4, 2)
    found = round_weights(scaled * 20, covariance, -63, 63)
    assert found.min() >= -63
    assert found.max() <= 63
    np.testing.assert_array_equal(found, np.rint(found))


def test_inputs_that_never_vary_do_no_harm() -> None:
    scaled, covariance = made(2, 6, 3, 3)
    covariance[1] = 0
    covariance[0, 2] = covariance[0, :, 2] = 0
    found = round_weights(scaled, covariance, LOW, HIGH)
    np.testing.assert_array_equal(found[1], nearest(scaled, LOW, HIGH)[1])


def test_the_factor_is_upper_triangular() -> None:
    _, covariance = made(3, 7, 1, 5)
    known, upper = factor(covariance)
    np.testing.assert_allclose(np.matmul(upper, upper.transpose(0, 2, 1)), known, rtol=1e-9)
    np.testing.assert_array_equal(upper, np.triu(upper))


def test_indefinite_sums_are_damped_until_they_are_not() -> None:
    covariance = np.array([[[1.0, 3.0], [3.0, 1.0]]])
    known, _ = factor(covariance)
    assert np.linalg.eigvalsh(known[0]).min() > 0
    with pytest.raises(ValueError, match="NaN"):
        factor(np.full((1, 2, 2), np.nan))


def test_an_outlier_whose_input_hardly_varies_is_clipped() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((1, 100, 2))
    weights[0, 7, 0] = 6.0
    variance = np.ones((1, 100))
    variance[0, 7] = 0.0
    scale = np.abs(weights).max(axis=1) / 7  # 4 bits
    share = shrink_scales(weights, scale, variance, -7, 7)
    assert share[0, 0] < 0.8 <= share[0, 1] <= 1.0
    joint = shrink_scales(weights, scale, variance, -7, 7, joint=True)
    assert joint[0, 0] == joint[0, 1]
    assert set(share.ravel()) <= set(SHRINKS)


def test_a_single_weight_keeps_its_scale() -> None:
    weights, scale = np.array([[[3.0]]]), np.array([[3.0 / 127]])
    np.testing.assert_array_equal(shrink_scales(weights, scale, np.ones((1, 1)), LOW, HIGH), 1)
