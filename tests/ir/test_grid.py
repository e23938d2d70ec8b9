"""Integers behind floats that a simulated quantization left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.ir.grid import find_grid


def on_grid(seed: int, shape: tuple[int, ...], axis: int, most: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    integers = rng.integers(-most, most + 1, shape)
    scale = rng.uniform(1e-4, 10.0, shape[axis]).astype(np.float32)
    along = np.moveaxis(np.broadcast_to(scale, (*np.delete(shape, axis), shape[axis])), -1, axis)
    return integers, scale, (integers.astype(np.float32) * along).astype(np.float32)


@given(st.integers(0, 10_000), st.sampled_from([0, 1, 2]), st.sampled_from([1, 7, 63, 127]))
def test_what_was_rounded_is_found_to_float32_rounding(seed: int, axis: int, most: int) -> None:
    _, _, weight = on_grid(seed, (5, 6, 7), axis, most)
    found = find_grid(weight, axis)
    assert found is not None
    integers, scale = found
    assert np.abs(integers).max() <= 127
    shape = [-1 if i == axis else 1 for i in range(3)]
    again = integers * scale.reshape(shape)
    np.testing.assert_allclose(again, weight, rtol=0, atol=1e-6 * np.abs(weight).max())


def test_the_integers_themselves_where_no_coarser_grid_fits() -> None:
    integers, scale, weight = on_grid(3, (4, 64), 0, 127)
    found = find_grid(weight, 0)
    assert found is not None
    np.testing.assert_array_equal(found[0], integers)
    np.testing.assert_allclose(found[1], scale, rtol=1e-6)


def test_other_zero_points_of_a_fake_quant_leave_rounding_alone() -> None:
    """TensorFlow computes floor((w - low) / s + 0.5) * s + low in float32."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 3, 8, 16)).astype(np.float32)
    high = np.abs(w).max(axis=(0, 1, 2)).astype(np.float32)
    s = (high / np.float32(127)).astype(np.float32)
    low = (-127 * s).astype(np.float32)
    fake = (np.floor((w - low) / s + np.float32(0.5)) * s + low).astype(np.float32)
    found = find_grid(fake.astype(np.float32), 3)
    assert found is not None
    np.testing.assert_array_equal(found[0], np.rint(fake / s))


@pytest.mark.parametrize("shape", [(8, 4), (16, 3, 3, 3), (64, 1, 3, 3), (256, 256)])
def test_trained_numbers_lie_on_no_grid(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        assert find_grid(weight, 0) is None


def test_one_channel_off_the_grid_is_enough() -> None:
    _, _, weight = on_grid(1, (4, 32), 0, 127)
    weight[2] = np.random.default_rng(1).normal(size=32)
    assert find_grid(weight, 0) is None


def test_too_few_numbers_prove_nothing() -> None:
    assert find_grid(np.array([[0.3], [0.7], [-1.1]], np.float32), 0) is None
    assert find_grid(np.zeros((4, 4), np.float32), 0) is None
    assert find_grid(np.full((4, 8), np.inf, np.float32), 0) is None


def test_finer_than_eight_bits_is_none() -> None:
    _, _, weight = on_grid(2, (2, 400), 0, 500)
    assert find_grid(weight, 0) is None


def test_a_channel_of_zeros_has_any_scale() -> None:
    integers, _, weight = on_grid(4, (3, 40), 0, 127)
    weight[1] = 0.0
    found = find_grid(weight, 0)
    assert found is not None
    assert not found[0][1].any() and found[1][1] == 1.0
    np.testing.assert_array_equal(found[0][0], integers[0])
