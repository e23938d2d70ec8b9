"""Least mean squared error: what rounding costs inside a range against what clipping costs outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.search import search_ranges
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import QParams, TensorRange, solve
from qcompile.ir.spec import QuantSpec

__all__ = ["mse_ranges", "reconstruction_errors"]

Values = npt.NDArray[np.float64]


def mse_ranges(stores: Sequence[TensorStore], spec: QuantSpec) -> tuple[Values, Values]:
    """Lows and highs, (tensors,), whose expected squared errors under ``spec`` are least.

    Rounding costs scale**2 / 12 for values that reach beyond the step around zero, and x**2 within
    it, where everything becomes zero: without the second term, tensors that are mostly next to zero
    (the output of a Softmax) get ranges far too narrow.
    """
    moments = _Moments(stores)

    def loss(lows: Values, highs: Values) -> Values:
        return moments.error(solve(TensorRange(lows, highs), spec))

    return search_ranges(moments.low[:, 0], moments.high[:, 0], loss)


class _Moments:
    """Sums of 1, x and x**2 up to any value, so that a candidate costs a few look-ups."""

    def __init__(self, stores: Sequence[TensorStore]) -> None:
        histograms = [s.histogram for s in stores]
        bins = max(len(h.counts) for h in histograms) + 1
        self.sums = np.zeros((3, len(stores), bins + 1))
        for row, h in enumerate(histograms):
            centers = (h.first + np.arange(len(h.counts)) + 0.5) * h.width
            powers = (np.ones_like(centers), centers, centers**2 + h.width**2 / 12)
            for i, power in enumerate(powers):
                np.cumsum(h.counts * power, out=self.sums[i, row, 1 : len(centers) + 1])
            self.sums[:, row, len(centers) + 1 :] = self.sums[:, row, len(centers), None]
        self.first = _column(h.first for h in histograms)
        self.width = _column(h.width for h in histograms)
        self.length = _column(len(h.counts) for h in histograms)
        self.low, self.high = _column(s.low for s in stores), _column(s.high for s in stores)
        self.missed = _column(_missed(s) for s in stores)
        self.rows = np.arange(len(stores))[:, None]

    def upto(self, bound: Values) -> Values:
        """The three sums over all values below ``bound``, (3, tensors, candidates)."""
        place = np.clip(bound / self.width - self.first, 0.0, self.length)
        whole = place.astype(np.int64)
        below = self.sums[:, self.rows, whole]
        return np.asarray(below + (place - whole) * (self.sums[:, self.rows, whole + 1] - below))

    def error(self, qparams: QParams) -> Values:
        """Sum of squared errors of the counted values, (tensors, candidates)."""
        scale = qparams.scale.astype(np.float64)
        zero = qparams.zero_point.astype(np.float64)
        low, high = (qparams.spec.qmin - zero) * scale, (qparams.spec.qmax - zero) * scale
        below, upto_high = self.upto(low), self.upto(high)
        over = self.sums[:, :, -1:] - upto_high
        clipped = below[2] - 2 * low * below[1] + low**2 * below[0]
        clipped = clipped + over[2] - 2 * high * over[1] + high**2 * over[0]
        near = self.upto(np.minimum(high, scale / 2)) - self.upto(np.maximum(low, -scale / 2))
        count = upto_high[0] - below[0] - near[0]
        extremes = np.minimum(self.low - low, 0.0) ** 2 + np.maximum(self.high - high, 0.0) ** 2
        rounded = near[2] + count * scale**2 / 12
        return np.asarray(np.maximum(clipped, 0.0) + rounded + extremes * self.missed)


def _column(values: Iterable[float]) -> Values:
    return np.fromiter(values, np.float64)[:, None]


def _missed(store: TensorStore) -> float:
    """What each of the two extremes weighs beside the sample, which may have missed them.

    As two elements of many they count little unless they are enormous, and then losing them is what
    ruins a model. Where every element was counted they weigh nothing more.
    """
    share = min(store.sampled_share, 1.0)
    return share * (1.0 - share)


def reconstruction_errors(store: TensorStore, qparams: QParams, *, coherent: float = 0.0) -> Values:
    """Mean squared errors of the stored values after Q and DQ, each bin taken at its centre.

    Args:
        store: what was seen; all errors are 0 before any data.
        qparams: a candidate in each row, (candidates,).
        coherent: how often the square of the mean error counts besides.
    """
    histogram = store.histogram
    if histogram.total == 0:
        return np.zeros(len(qparams.scale))
    scale = qparams.scale.astype(np.float64)[:, None]
    zero = qparams.zero_point.astype(np.float64)[:, None]
    low, high = (qparams.spec.qmin - zero) * scale, (qparams.spec.qmax - zero) * scale
    counts, width = histogram.counts.astype(np.float64), histogram.width
    centers = (histogram.first + np.arange(len(counts)) + 0.5) * width
    error = centers / scale
    np.rint(error, out=error)
    error *= scale
    np.clip(error, low, high, out=error)
    error -= centers
    mean = error @ counts / histogram.total
    error *= error
    # Several levels within one bin: what the centre would lose says nothing.
    coarse = (width > scale) & (centers > low) & (centers < high)
    if coarse.any():
        error = np.where(coarse, scale**2 / 12, error + width**2 / 12)
    else:
        error += width**2 / 12
    total = np.asarray(error @ counts)
    for end in (store.low, store.high):
        total += (end - np.clip(np.rint(end / scale) * scale, low, high))[:, 0] ** 2 * _missed(
            store
        )
    return np.asarray(total / histogram.total + coherent * mean**2)
