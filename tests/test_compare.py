"""Two sets of outputs against each other: SQNR, agreement, other numbers of results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compare import SQNR_MAX, OutputComparison, OutputResult, compare_outputs, db


def compared(*pairs: tuple[Any, Any]) -> OutputResult:
    found: dict[str, OutputComparison] = {}
    for index, (a, b) in enumerate(pairs):
        compare_outputs(found, str(index), None, {"y": a}, {"y": b})
    return next(iter(found.values())).result()


def test_other_number_of_results_counts_as_no_match() -> None:
    # signal 4 + 1, noise of the second sample 1 + 3
    four, one, three = np.ones(4, np.float32), np.ones(1, np.float32), np.ones(3, np.float32)
    found = compared((four, four), (one, three))
    assert found.shape_differs == 1
    assert found.sqnr_db == pytest.approx(10 * math.log10(5 / 4))


def test_sequences_and_maps_are_compared_by_part() -> None:
    found: dict[str, OutputComparison] = {}
    a = {"s": [np.ones(2, np.float32), np.ones(3, np.float32)], "m": [{1: 0.5}]}
    compare_outputs(found, "0", None, a, {"s": [np.ones(2, np.float32)], "m": [{1: 0.5}]})
    assert set(found) == {"s[0]", "s[1]", "m[0][1]"}
    assert found["s[1]"].result().shape_differs == 1


def test_class_agreement_and_divergence() -> None:
    a = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    b = np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    found = compared((a, b))
    assert found.agreement == 0.5
    assert found.kl == pytest.approx((0.2 * math.log(0.25) + 0.8 * math.log(4)) / 2, rel=1e-5)
    assert compared((a, a)).cosine == pytest.approx(1.0)


@given(st.integers(1, 5), st.floats(0.01, 1.0))
def test_sqnr_is_additive_over_samples(count: int, scale: float) -> None:
    rng = np.random.default_rng(count)
    a = rng.normal(size=(count, 8)).astype(np.float32)
    b = a + scale * rng.normal(size=a.shape).astype(np.float32)
    whole = compared((a, b)).sqnr_db
    parts = compared(*zip(a, b, strict=True)).sqnr_db
    assert whole == pytest.approx(parts, abs=1e-9)


def test_db_limits() -> None:
    assert db(1.0, 0.0) == db(0.0, 0.0) == SQNR_MAX
    assert db(0.0, 1.0) == -SQNR_MAX


def test_large_outputs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ref = rng.normal(size=(7, 3, 40)).astype(np.float32)
    got = ref + rng.normal(size=ref.shape).astype(np.float32) / 10
    whole = compared((ref, got))
    monkeypatch.setattr("qcompile.compare._TRACKED", 250)
    monkeypatch.setattr("qcompile.row_sums.AT_ONCE", 90)  # two rows of 21
    parts = compared((ref, got))
    assert parts.varying is None
    for name in ("sqnr_db", "agreement", "cosine", "kl", "max_abs_error", "peak"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9)
