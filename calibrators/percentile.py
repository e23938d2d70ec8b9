"""Percentile ranges: leave out the same small share of all values at each end."""

from __future__ import annotations

import numpy as np

from qcompile.calibrators.histogram import Counts
from qcompile.calibrators.store import TensorStore

__all__ = ["percentile_range"]


def percentile_range(store: TensorStore, percent: float) -> tuple[float, float]:
    """The range that leaves out ``100 - percent`` percent of the values at each end.

    Zero is always kept, so an end that the share would move across zero stops there.
    """
    histogram = store.histogram
    share = (1.0 - percent / 100.0) * histogram.total
    # Bins are anchored at zero: none holds values of both signs.
    zero = max(0, -histogram.first)
    high = _end(histogram.counts[zero:], max(histogram.first, 0), share) * histogram.width
    negative = histogram.counts[:zero][::-1]
    nearest = max(0, -(histogram.first + len(histogram.counts)))
    low = -_end(negative, nearest, share) * histogram.width
    return max(low, min(store.low, 0.0)) + 0.0, min(high, max(store.high, 0.0))


def _end(counts: Counts, start: int, share: float) -> float:
    """Distance from zero, in bins, beyond which ``share`` values lie; counts go outwards from start."""
    beyond = np.cumsum(counts[::-1])
    if len(beyond) == 0 or beyond[-1] <= share:
        return 0.0
    i = int(np.searchsorted(beyond, share, side="right"))
    inner = int(beyond[i - 1]) if i else 0
    part = (share - inner) / (int(beyond[i]) - inner)
    return start + len(counts) - i - part
