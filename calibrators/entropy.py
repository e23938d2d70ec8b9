"""Least information lost: the range whose quantized histogram is closest to the real one.

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; here with both ends free, because
activations are asymmetric, and zeros left out, because every scale represents them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.histogram import Histogram
from qcompile.calibrators.search import search_ranges
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import QParams, TensorRange, solve
from qcompile.ir.spec import QuantSpec

__all__ = ["entropy_ranges"]

_BINS = 1024
"""Bins that are told apart: four for each of 256 levels, and a candidate costs half as much."""

_AT_ONCE = 1 << 17
"""Numbers in one intermediate array: 1 MB."""

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def entropy_ranges(stores: Sequence[TensorStore], spec: QuantSpec) -> tuple[Values, Values]:
    """Lows and highs, (tensors,), with the least divergence between real and quantized histogram.

    A range of fewer bins than the spec has levels is not considered: each bin would have a level to
    itself, and the divergence would be 0 whatever is lost outside.
    """
    sums = _Sums([s.histogram for s in stores])
    lows, highs = (np.array([getattr(s, end) for s in stores]) for end in ("low", "high"))
    levels = spec.qmax - spec.qmin
    narrowest = levels * sums.width[:, None]
    chunk = max(1, _AT_ONCE // (levels + 2))

    def loss(low: Values, high: Values) -> Values:
        found = np.full(low.shape, np.inf)
        row, column = np.nonzero((high - low >= narrowest) & (sums.total[:, None] > 0))
        for at in range(0, len(row), chunk):
            r, c = row[at : at + chunk], column[at : at + chunk]
            found[r, c] = sums.divergence(r, solve(TensorRange(low[r, c], high[r, c]), spec))
        return found

    return search_ranges(lows, highs, loss, stride=4)


class _Sums:
    """Running sums over the bins, so that a candidate costs one look-up for each of its levels."""

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        count = len(histograms)
        self.counts = np.zeros((count, _BINS))
        self.first, self.width = np.zeros(count), np.zeros(count)
        for row, histogram in enumerate(histograms):
            self.first[row], counts, self.width[row] = histogram.coarse(_BINS)
            self.counts[row, : len(counts)] = counts
        self.mass = _running(self.counts)
        self.total = self.mass[:, -1]
        self.logs = _running(_xlogx(self.counts))
        self.bins = _running(self.counts > 0)
        # The nearest bin that holds anything, from each bin upwards and downwards.
        index = np.where(self.counts > 0, np.arange(_BINS), -1)
        self.before = np.maximum.accumulate(index, axis=1)
        index = np.where(self.counts > 0, np.arange(_BINS), _BINS - 1)
        self.after = np.minimum.accumulate(index[:, ::-1], axis=1)[:, ::-1]

    def divergence(self, row: Indices, qparams: QParams) -> Values:
        """Sum of p log(p / q) for candidates of the tensors ``row``, (candidates,).

        p is the histogram inside the range, with what lies outside added to its first and last bin;
        q spreads what each level holds inside the range evenly over the bins with data there.
        """
        spec = qparams.spec
        levels = np.arange(spec.qmin, spec.qmax + 2) - 0.5
        edges = levels - qparams.zero_point[:, None].astype(np.float64)
        edges *= qparams.scale[:, None].astype(np.float64) / self.width[row, None]
        edges -= self.first[row, None]
        at = np.rint(edges).clip(0, _BINS).astype(np.int64)
        mass = np.diff(self.mass[row[:, None], at])
        bins = np.diff(self.bins[row[:, None], at])
        height = np.log(np.where(mass > 0, mass, 1.0) / np.maximum(bins, 1.0))
        start, stop = at[:, 0], at[:, -1]
        under, over = self.mass[row, start], self.total[row] - self.mass[row, stop]
        inside = self.mass[row, stop] - self.mass[row, start]
        low = self.counts[row, self.after[row, np.minimum(start, _BINS - 1)]]
        high = self.counts[row, self.before[row, np.maximum(stop - 1, 0)]]
        real = self.logs[row, stop] - self.logs[row, start]
        real += _xlogx(low + under) - _xlogx(low) + _xlogx(high + over) - _xlogx(high)
        each = np.arange(len(at))
        lowest = np.argmax(mass > 0, axis=1)
        highest = mass.shape[1] - 1 - np.argmax(mass[:, ::-1] > 0, axis=1)
        spread = np.einsum("ij,ij->i", mass, height)
        spread += under * height[each, lowest] + over * height[each, highest]
        with np.errstate(divide="ignore"):
            found = (real - spread) / self.total[row] + np.log(inside / self.total[row])
        return np.where(inside > 0, found, np.inf)


def _running(values: npt.NDArray[np.generic]) -> Values:
    found = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=found[:, 1:])
    return found


def _xlogx(values: Values) -> Values:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))
