"""Least information lost: the range whose quantized histogram is closest to the real one.

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; here with both ends free, because
activations are asymmetric, and zeros left out, because every scale represents them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.histogram import Counts
from qcompile.calibrators.search import search_range
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import QParams, TensorRange, solve
from qcompile.ir.spec import QuantSpec

__all__ = ["entropy_range"]

_BINS = 1024
"""Bins that are told apart: four for each of 256 levels, and a candidate costs half as much."""

Values = npt.NDArray[np.float64]


def entropy_range(store: TensorStore, spec: QuantSpec) -> tuple[float, float]:
    """The range with the least Kullback-Leibler divergence between real and quantized histogram.

    A range of fewer bins than the spec has levels is not considered: each bin would have a level to
    itself, and the divergence would be 0 whatever is lost outside.
    """
    histogram = store.histogram
    low, high = min(store.low, 0.0), max(store.high, 0.0)
    first, counts, width = histogram.coarse(_BINS)
    narrowest = (spec.qmax - spec.qmin) * width
    if len(counts) == 0 or narrowest >= high - low:
        return low, high
    sums = _Sums(first, counts, width)

    def loss(lows: Values, highs: Values) -> Values:
        found = np.full(len(lows), np.inf)
        wide = highs - lows >= narrowest
        if wide.any():
            found[wide] = sums.divergence(solve(TensorRange(lows[wide], highs[wide]), spec))
        return found

    return search_range(store.low, store.high, loss, stride=2)


class _Sums:
    """Running sums over the bins, so that a candidate costs one look-up for each of its levels."""

    def __init__(self, first: int, counts: Counts, width: float) -> None:
        self.first, self.width = first, width
        mass = counts.astype(np.float64)
        self.mass = _running(mass)
        self.logs = _running(_xlogx(mass))
        self.bins = _running(mass > 0)
        seen = np.flatnonzero(counts)
        # The nearest bin that holds anything, from each bin upwards and downwards.
        self.after = seen[
            np.minimum(np.searchsorted(seen, np.arange(len(mass) + 1)), len(seen) - 1)
        ]
        before = np.searchsorted(seen, np.arange(len(mass) + 1), side="right") - 1
        self.before = seen[np.maximum(before, 0)]
        self.counts = mass

    def divergence(self, qparams: QParams) -> Values:
        """Sum of p log(p / q) for each candidate.

        p is the histogram inside the range, with what lies outside added to its first and last bin;
        q spreads what each level holds inside the range evenly over the bins with data there.
        """
        spec = qparams.spec
        bounds = (
            np.arange(spec.qmin, spec.qmax + 2) - 0.5 - qparams.zero_point[:, None].astype(float)
        )
        edges = bounds * qparams.scale[:, None].astype(np.float64)
        at = np.rint(edges / self.width - self.first).clip(0, len(self.counts)).astype(np.int64)
        mass, bins = np.diff(self.mass[at]), np.diff(self.bins[at])
        height = np.log(np.where(mass > 0, mass, 1.0) / np.maximum(bins, 1.0))
        start, stop = at[:, 0], at[:, -1]
        under, over = self.mass[start], self.mass[-1] - self.mass[stop]
        inside = self.mass[stop] - self.mass[start]
        low, high = self.counts[self.after[start]], self.counts[self.before[stop - 1]]
        real = self.logs[stop] - self.logs[start]
        real += _xlogx(low + under) - _xlogx(low) + _xlogx(high + over) - _xlogx(high)
        row = np.arange(len(at))
        full = mass > 0
        lowest = np.argmax(full, axis=1)
        highest = full.shape[1] - 1 - np.argmax(full[:, ::-1], axis=1)
        spread = (mass * height).sum(axis=1)
        spread += under * height[row, lowest] + over * height[row, highest]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (real - spread) / self.mass[-1] + np.log(inside / self.mass[-1])
        return np.where(inside > 0, found, np.inf)


def _running(values: npt.NDArray[np.generic]) -> Values:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: Values) -> Values:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))
