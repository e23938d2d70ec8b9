"""Refitting to noisy inputs: the regression that theory gives, streamed."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.calibrators.regression import Moments, position_weights, refit


def drawn(noise: float, count: int = 200_000, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((1, 3, count)) * np.array([1.0, 2.0, 0.5])[:, None] + mean
    seen = exact + noise * rng.standard_normal(exact.shape)
    return exact.astype(np.float32), seen.astype(np.float32)


def moments_of(
    exact: np.ndarray, seen: np.ndarray, parts: int = 1, weights: np.ndarray | None = None
) -> Moments:
    found = Moments()
    layer = np.ones((1, 3, 1)) if weights is None else weights
    for x, y in zip(np.array_split(exact, parts, 2), np.array_split(seen, parts, 2), strict=True):
        each = np.full(x.shape[2], 1 / x.shape[2], np.float32)
        found.update(x, y, each, outputs_of(layer, x))
    return found


def outputs_of(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.matmul(weights.astype(np.float32).transpose(0, 2, 1), x)


def test_without_noise_the_weights_stay() -> None:
    exact, seen = drawn(0.0)
    weights = np.random.default_rng(1).standard_normal((1, 3, 4))
    (found,) = refit(weights, moments_of(exact, seen, weights=weights), [1e-9])
    np.testing.assert_allclose(found, weights, rtol=1e-5)


def test_independent_noise_shrinks_each_weight_as_wiener_says() -> None:
    exact, seen = drawn(0.5)
    weights = np.ones((1, 3, 1))
    (found,) = refit(weights, moments_of(exact, seen), [1e-9])
    variance = np.array([1.0, 4.0, 0.25])
    shrunk = variance / (variance + 0.25)
    growth = np.sqrt(variance.sum() / (shrunk @ variance))
    np.testing.assert_allclose(found[0, :, 0], growth * shrunk, atol=0.01)


@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0])
def test_outputs_vary_as_much_as_floats_up_to_a_factor(noise: float) -> None:
    exact, seen = drawn(noise, mean=20.0)
    weights = np.array([[[1.0, -0.5], [0.5, 2.0], [3.0, 1.0]]])
    (found,) = refit(weights, moments_of(exact, seen, 3, weights), [1e-9])
    variance = np.array([1.0, 4.0, 0.25])
    kept = variance / (variance + noise**2)
    for which in (0, 1):
        signal = np.square(weights[0, :, which]) * variance
        y, back = outputs_of(weights, exact)[0, which], outputs_of(found, seen)[0, which]
        left = np.sqrt((signal @ kept) / signal.sum())  # of the deviation after least squares
        assert back.std() == pytest.approx(min(1.0, 1.5 * left) * y.std(), rel=0.02)


def test_a_ridge_pulls_towards_the_weights() -> None:
    exact, seen = drawn(1.0)
    weights = np.ones((1, 3, 1))
    near, far = refit(weights, moments_of(exact, seen), [100.0, 0.01])
    assert np.abs(near - weights).max() < 0.02
    assert np.abs(far - weights).max() > 0.5


def test_streaming_is_the_whole() -> None:
    exact, seen = drawn(0.3, 1200, mean=50.0)
    whole, parts = moments_of(exact, seen), moments_of(exact, seen, 4)
    np.testing.assert_allclose(parts.noisy, whole.noisy, atol=1e-4)
    np.testing.assert_allclose(parts.cross, whole.cross, atol=1e-4)
    np.testing.assert_allclose(parts.noisy_mean, whole.noisy_mean, atol=1e-4)
    expected = np.cov(seen[0].astype(np.float64), bias=True)
    np.testing.assert_allclose(whole.noisy[0], expected, atol=1e-4)


def test_means_stay_in_where_no_bias_takes_them() -> None:
    exact, seen = drawn(0.0, 1000, mean=3.0)
    found = Moments(centred=False)
    found.update(exact, seen, np.full(1000, 0.001, np.float32), exact[:, :1])
    assert not found.exact_mean.any()
    whole = seen[0].astype(np.float64)
    np.testing.assert_allclose(found.noisy[0], whole @ whole.T / 1000, rtol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e9])
def test_positions_with_huge_values_count_less(size: float) -> None:
    outputs = np.ones((2, 3, 10), np.float32) * np.float32(size)
    outputs[:, :, 4] *= 100
    weights = position_weights(outputs)
    assert weights.sum() == pytest.approx(1)
    assert weights[4] < 0.1 * weights[0]


def test_positions_without_values_do_not_rule() -> None:
    outputs = np.ones((1, 3, 10), np.float32)
    outputs[:, :, 4] = 0
    weights = position_weights(outputs)
    assert weights[4] < 100 * weights[0]
    np.testing.assert_allclose(position_weights(np.zeros((1, 3, 10), np.float32)), 0.1, rtol=1e-6)


def test_without_products_there_are_means_alone() -> None:
    rng = np.random.default_rng(3)
    exact = rng.normal(1.0, 1.0, (2, 5, 40)).astype(np.float32)
    noisy = exact + rng.normal(0.1, 0.1, exact.shape).astype(np.float32)
    weights = np.full(40, 1 / 40, np.float32)
    lean, full = Moments(products=False), Moments()
    for one in (lean, full):
        one.update(exact, noisy, weights, exact)
    np.testing.assert_array_equal(lean.exact_mean, full.exact_mean)
    np.testing.assert_array_equal(lean.noisy_mean, full.noisy_mean)
    assert lean.finite() and full.finite()
    noisy[0, 0, 0] = np.inf
    lean.update(exact, noisy, weights, exact)
    assert not lean.finite()
