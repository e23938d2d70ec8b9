"""Histograms: merging shards equals seeing all the data, in any order, exactly."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.calibrators.histogram import Histogram
from qcompile.calibrators.store import TensorStore

VALUES = hnp.arrays(
    np.float32, st.integers(0, 30), elements=st.floats(-(2.0**127), 2.0**127, width=32)
)
SHARDS = st.lists(VALUES, min_size=1, max_size=6)


def state(h: Histogram) -> tuple[object, ...]:
    return (h.exponent, h.first, h.counts.tolist(), h.zeros, h.low, h.high)


def seen(*shards: np.ndarray, capacity: int = 64) -> Histogram:
    h = Histogram(capacity)
    for shard in shards:
        h.update(shard)
    return h


@given(SHARDS, st.randoms(use_true_random=False))
def test_merge_equals_whole_in_any_order(shards: list[np.ndarray], random: Random) -> None:
    whole = seen(np.concatenate(shards))
    assert state(seen(*shards)) == state(whole)
    random.shuffle(shards)
    merged = Histogram(64)
    for shard in shards:
        merged.merge(seen(shard))
    assert state(merged) == state(whole)
    assert state(whole.copy()) == state(whole)


@given(SHARDS)
def test_every_value_lies_in_its_bin_and_memory_is_bounded(shards: list[np.ndarray]) -> None:
    h = seen(*shards)
    values = np.concatenate(shards).astype(np.float64)
    assert h.total == len(values)
    assert len(h.counts) <= 64
    if len(values):
        expected, _ = np.histogram(values[values != 0], bins=np.append(h.edges[:-1], np.inf))
        assert expected.tolist() == h.counts.tolist()
        assert h.edges[0] <= values.min() < h.edges[1]
        assert h.edges[-2] <= values.max() < h.edges[-1]


@given(VALUES, st.integers(2, 64))
def test_coarse_keeps_the_counts(values: np.ndarray, bins: int) -> None:
    h = seen(values)
    first, counts, width = h.coarse(bins)
    assert counts.sum() == h.counts.sum()
    assert len(counts) <= bins
    if len(counts):
        assert first * width <= h.low <= h.high <= (first + len(counts)) * width


def test_no_bin_holds_values_of_both_signs() -> None:
    h = seen(np.array([-1e-30, 1e-30, 1000.0], np.float32))
    assert h.edges[0] < 0
    assert 0.0 in h.edges


def test_weights_count_as_repetitions() -> None:
    weighted, repeated = Histogram(), Histogram()
    values = np.array([0.0, 1.0, -2.5], np.float32)
    weighted.update(values, weight=3)
    for _ in range(3):
        repeated.update(values)
    assert state(weighted) == state(repeated)


def test_one_bin_cannot_span_zero() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Histogram(capacity=1)


@given(SHARDS)
def test_a_smaller_histogram_takes_in_a_larger_one(shards: list[np.ndarray]) -> None:
    assert state(seen(*shards).copy(16)) == state(seen(*shards, capacity=16))


def test_a_larger_histogram_does_not_take_in_a_smaller_one() -> None:
    with pytest.raises(ValueError, match="128 bins cannot take in one of 64"):
        Histogram(128).merge(Histogram(64))


@given(SHARDS)
def test_stores_merge_like_their_histograms(shards: list[np.ndarray]) -> None:
    whole, merged = TensorStore(), TensorStore()
    whole.observe(np.concatenate(shards))
    for shard in shards:
        part = TensorStore()
        part.observe(shard)
        merged.merge(part)
    assert (merged.low, merged.high, merged.elements) == (whole.low, whole.high, whole.elements)
    assert state(merged.histogram) == state(whole.histogram)
    assert whole.empty == (whole.elements == 0)
    assert whole.sampled_share in (0, 1)
