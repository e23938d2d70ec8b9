"""Least mean squared error: what rounding costs inside a range against what clipping costs outside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.search import search_range
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import QParams, TensorRange, dequantize, quantize, solve
from qcompile.ir.spec import QuantSpec

__all__ = ["mse_range", "reconstruction_error"]

Values = npt.NDArray[np.float64]


def mse_range(store: TensorStore, spec: QuantSpec) -> tuple[float, float]:
    """The range whose expected squared error under ``spec`` is least.

    Rounding costs scale**2 / 12 for values that reach beyond the step around zero, and x**2 within
    it, where everything becomes zero: without the second term, tensors that are mostly next to zero
    (the output of a Softmax) get ranges far too narrow.
    """
    moments = _Moments(store)

    def loss(lows: Values, highs: Values) -> Values:
        return moments.error(solve(TensorRange(lows, highs), spec))

    return search_range(store.low, store.high, loss)


class _Moments:
    """Sums of 1, x and x**2 up to any value, so that a candidate costs a few look-ups."""

    def __init__(self, store: TensorStore) -> None:
        histogram = store.histogram
        self.edges = histogram.edges if len(histogram.counts) else np.zeros(1)
        centers = (self.edges[1:] + self.edges[:-1]) / 2
        counts = histogram.counts.astype(np.float64)
        spread = histogram.width**2 / 12
        self.sums = [
            np.concatenate([[0.0], np.cumsum(counts * power)])
            for power in (np.ones_like(centers), centers, centers**2 + spread)
        ]
        self.missed = _missed(store)
        self.limits = (store.low, store.high)

    def upto(self, bound: Values) -> tuple[Values, Values, Values]:
        zero, one, two = (np.interp(bound, self.edges, s) for s in self.sums)
        return zero, one, two

    def error(self, qparams: QParams) -> Values:
        """Sum of squared errors of the counted values, one per candidate."""
        scale = qparams.scale.astype(np.float64)
        zero = qparams.zero_point.astype(np.float64)
        low, high = (qparams.spec.qmin - zero) * scale, (qparams.spec.qmax - zero) * scale
        below, above = self.upto(low), self.upto(high)
        all_ = [s[-1] for s in self.sums]
        clipped = below[2] - 2 * low * below[1] + low**2 * below[0]
        over = [total - part for total, part in zip(all_, above, strict=True)]
        clipped = clipped + over[2] - 2 * high * over[1] + high**2 * over[0]
        left = self.upto(np.maximum(low, -scale / 2))
        right = self.upto(np.minimum(high, scale / 2))
        inner = right[2] - left[2]
        count = above[0] - below[0] - (right[0] - left[0])
        extremes = np.minimum(self.limits[0] - low, 0.0) ** 2
        extremes += np.maximum(self.limits[1] - high, 0.0) ** 2
        total = np.maximum(clipped, 0.0) + inner + count * scale**2 / 12 + extremes * self.missed
        return np.asarray(total)


def _missed(store: TensorStore) -> float:
    """What each of the two extremes weighs beside the sample, which may have missed them.

    As two elements of many they count little unless they are enormous, and then losing them is what
    ruins a model. Where every element was counted they weigh nothing more.
    """
    share = min(store.sampled_share, 1.0)
    return share * (1.0 - share)


def reconstruction_error(store: TensorStore, qparams: QParams) -> float:
    """Mean squared error of the stored values after Q and DQ, each bin taken at its centre.

    ``qparams`` must be per-tensor. 0 before any data.
    """
    histogram = store.histogram
    if histogram.total == 0:
        return 0.0
    edges = histogram.edges
    centers = (edges[1:] + edges[:-1]) / 2
    error = (centers - _fake(centers, qparams)) ** 2
    scale = float(qparams.scale)
    if histogram.width > scale:
        # Within one bin lie several levels: what the centre would lose says nothing.
        low, high = (float(_fake(np.array([s]), qparams)[0]) for s in (-np.inf, np.inf))
        error = np.where((centers > low) & (centers < high), scale**2 / 12, error)
    else:
        error = error + histogram.width**2 / 12
    total = float(histogram.counts @ error)
    ends = np.array([store.low, store.high])
    total += float(((ends - _fake(ends, qparams)) ** 2).sum()) * _missed(store)
    return total / histogram.total


def _fake(values: Values, qparams: QParams) -> Values:
    return dequantize(quantize(values, qparams), qparams).astype(np.float64)
