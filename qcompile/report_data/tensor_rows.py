"""What calibration saw of each tensor, as a histogram of few bins, and the range that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qcompile.calibration import Calibration
from qcompile.calibrators.histogram import Histogram
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange
from qcompile.report_data.rounded import rounded

__all__ = ["tensor_rows"]

BINS = 64
"""At most; a histogram of powers of two may have half as many."""


def tensor_rows(
    chosen: Mapping[str, TensorRange], calibration: Calibration | None
) -> list[dict[str, Any]]:
    """One row for each tensor with a range, in the order of calibration.

    Without a calibration (ranges replayed from a lock) there are ranges, but no histograms.
    """
    rows = []
    shown: dict[str, str] = {}
    for name, limits in chosen.items():
        low, high = float(np.min(limits.low)), float(np.max(limits.high))
        row: dict[str, Any] = {
            "name": name,
            "clip_low": rounded(low),
            "clip_high": rounded(high),
            "method": limits.method,
        }
        root = calibration.same.get(name) if calibration is not None else None
        if calibration is not None and root in calibration.fit:
            if root in shown:
                row["same_as"] = shown[root]
            else:
                shown[root] = name
                row |= _seen(_store(calibration, root), low, high)
        rows.append(row)
    return rows


def _store(calibration: Calibration, root: str) -> TensorStore:
    store = calibration.fit[root].copy()
    if root in calibration.held:
        store.merge(calibration.held[root])
    return store


def _seen(store: TensorStore, low: float, high: float) -> dict[str, Any]:
    if store.empty:
        return {}
    found: dict[str, Any] = {"low": rounded(store.low), "high": rounded(store.high)}
    histogram = store.histogram
    if not histogram.total:
        return found
    found["clipped"] = rounded(_outside(histogram, low, high))
    found["zeros"] = rounded(histogram.zeros / histogram.total)
    if len(histogram.counts):
        first, counts, width = histogram.coarse(BINS)
        found["histogram"] = {
            "start": rounded(first * width),
            "width": rounded(width),
            "counts": [int(c) for c in counts],
        }
    return found


def _outside(histogram: Histogram, low: float, high: float) -> float:
    """Share of the values in bins that lie wholly outside the range (widened to zero).

    The highest value seen may open a bin of its own: less than a step beyond an end is no clipping.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    step, edges = (high - low) / 255, histogram.edges
    outside = (edges[1:] <= low - step) | (edges[:-1] >= high + step)
    return float(histogram.counts[outside].sum()) / histogram.total
