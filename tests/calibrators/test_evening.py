"""Factors that even out channels, and the error of integer products."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.calibrators.evening import even_exponents, product_error, weight_peaks

NONE = np.zeros(4)


def test_channels_end_up_even() -> None:
    peaks = np.array([1.0, 8.0, 0.25, 2.0])
    assert even_exponents(peaks, np.ones(4), 1.0, NONE, NONE).tolist() == [-3, 0, -5, -2]
    assert even_exponents(np.ones(4), peaks, 0.0, NONE, NONE).tolist() == [-2, -5, 0, -3]
    assert not even_exponents(np.ones(4), np.ones(4), 0.5, NONE, NONE).any()


def test_dead_and_fixed_channels_keep_their_size_and_limits_hold() -> None:
    peaks, fixed = np.array([0.0, 8.0, 0.25, 2.0]), np.array([0.0, 1.0, 0.0, 0.0])
    least = np.array([0.0, 0.0, 0.3, 0.0])
    found = even_exponents(peaks, np.ones(4), 1.0, least, fixed)
    assert found.tolist() == [0, 0, -1, -2]
    assert (2.0**found >= least).all()
    assert not even_exponents(np.zeros(4), np.ones(4), 1.0, NONE, NONE).any()


def test_an_outlier_costs_less_once_it_is_in_the_weights() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 200)).astype(np.float32)
    x[:, 3] *= 64
    w = rng.standard_normal((1, 16, 8)).astype(np.float32)
    w[:, 3] /= 64
    peaks = np.abs(x[0]).max(axis=1).astype(np.float64)
    reach = weight_peaks([(np.abs(w[0]) / np.abs(w[0]).max(axis=0)).astype(np.float64)])
    factor = np.exp2(even_exponents(peaks, reach, 0.5, np.zeros(16), np.zeros(16)))
    plain = product_error(x, w, np.ones((1, 16), np.float32))
    assert product_error(x, w, factor[None].astype(np.float32)) < 0.02 * plain


def test_the_error_is_that_of_eight_bits() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (1, 64, 500)).astype(np.float32)
    w = rng.uniform(-1, 1, (1, 64, 8)).astype(np.float32)
    expected = ((2 / 255) ** 2 / 12) / (1 / 3) + ((1 / 127) ** 2 / 12) / (1 / 3)
    assert product_error(x, w, np.ones((1, 64), np.float32)) == pytest.approx(expected, rel=0.15)
