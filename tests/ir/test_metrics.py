"""Metrics: known values, and a defined answer for every strange input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.ir.errors import ModelError
from qcompile.ir.metrics import cosine, kl, max_abs_error, sqnr_db, top_k_agreement

ANY = hnp.arrays(np.float32, (2, 5), elements=st.floats(width=32))


@given(ANY, ANY)
def test_never_nan_and_equal_is_best(a: np.ndarray, b: np.ndarray) -> None:
    for metric in (sqnr_db, cosine, max_abs_error, top_k_agreement, kl):
        assert not math.isnan(metric(a, b))
    assert sqnr_db(a, a) == math.inf
    assert max_abs_error(a, a) == 0
    assert top_k_agreement(a, a) == 1


def test_known_values() -> None:
    ref = np.array([3.0, 4.0])
    assert sqnr_db(ref, ref * 1.1) == pytest.approx(20)
    assert sqnr_db(ref * 1e200, ref * 1.1e200) == pytest.approx(20)
    assert cosine(ref, -2 * ref) == pytest.approx(-1)
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == 0
    assert max_abs_error(np.array([1, 2], np.int64), np.array([1, 5], np.int64)) == 3
    assert kl(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )
    assert kl(np.array([0.5, 0.5]), np.array([0.25, 0.75]), logits=False) == pytest.approx(
        0.5 * math.log(4 / 3)
    )


def test_zero_and_constant_references() -> None:
    zero, one = np.zeros(4), np.ones(4)
    assert sqnr_db(zero, zero) == math.inf
    assert sqnr_db(zero, one) == -math.inf
    assert sqnr_db(one, zero) == 0
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == 0
    assert cosine(one, 3 * one) == pytest.approx(1)


def test_what_is_not_finite_must_agree() -> None:
    ref = np.array([1.0, -np.inf, np.nan])
    assert sqnr_db(ref, ref) == math.inf
    assert sqnr_db(ref, np.array([1.0, np.inf, np.nan])) == -math.inf
    assert max_abs_error(np.array([1.0]), np.array([np.nan])) == math.inf
    assert cosine(np.array([1.0]), np.array([np.nan])) == 0
    assert kl(np.array([1.0, 2.0]), np.array([1.0, np.inf])) == math.inf


def test_probabilities_of_zero() -> None:
    sure, unsure = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert kl(sure, unsure, logits=False) == pytest.approx(math.log(2))
    assert kl(unsure, sure, logits=False) == math.inf


def test_top_k() -> None:
    ref = np.array([[5, 4, 3, 2], [1, 2, 3, 4]])
    other = np.array([[5, 3, 4, 2], [4, 3, 2, 1]])
    assert top_k_agreement(ref, other) == 0.5
    assert top_k_agreement(ref, other, k=2) == 0.25
    assert top_k_agreement(ref, other, k=9) == 1
    assert top_k_agreement(ref.T, other.T, axis=0) == 0.5
    assert top_k_agreement(np.zeros((2, 3)), np.zeros((2, 3)), k=2) == 1


def test_empty_and_scalar_results() -> None:
    for metric in (sqnr_db, cosine, max_abs_error, top_k_agreement, kl):
        metric(np.zeros((0, 3)), np.zeros((0, 3)))
        metric(np.float32(2), np.float32(2))


def test_other_shapes_are_refused() -> None:
    for metric in (sqnr_db, cosine, max_abs_error, top_k_agreement, kl):
        with pytest.raises(ModelError, match=r"\(2,\) and \(3,\)"):
            metric(np.zeros(2), np.zeros(3))
