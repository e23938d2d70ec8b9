"""Likelihoods of tokens, from logits of any size."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.probabilities import log_softmax, surprise


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_surprise_is_the_negative_logarithm_of_the_softmax(shift: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(0, 6, (2, 5, 700)) + shift).astype(np.float32)
    tokens = rng.integers(0, 700, (2, 5))
    wanted = -np.take_along_axis(log_softmax(logits), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(surprise(logits, tokens), wanted, rtol=2e-6, atol=1e-6)


def test_what_cannot_be_is_infinitely_surprising_and_nan_stays_nan() -> None:
    logits = np.array([[[0.0, -np.inf], [0.0, np.nan]]], np.float32)
    found = surprise(logits, np.array([[1, 0]]))
    assert np.isinf(found[0, 0]) and np.isnan(found[0, 1])
