"""Weights of each layer by output channel: the ranges that decide whether one scale can serve all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.ir.graph import constant
from qcompile.passes.quantizable import Site
from qcompile.report_data.rounded import rounded, rounded_all

__all__ = ["weight_rows"]

GROUPS = 64
"""Channels are shown one by one up to this many, else in this many groups of neighbours."""

BINS = 48
SAMPLE = 1 << 18
"""Elements of a weight that its histogram is made from, about."""


def weight_rows(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """One row for each constant float weight, in graph order; tied weights once."""
    rows = []
    seen: set[str] = set()
    for site in sites:
        if site.weight is None or (site.weight.name or "") in seen:
            continue
        array = constant(site.weight)
        if array is None or array.dtype.kind != "f" or array.ndim < 1 or not array.size:
            continue
        seen.add(site.weight.name or "")
        axis = None if site.weight_spec is None else site.weight_spec.granularity.axis
        rows.append({"origin": site.origin, "name": site.weight.name} | _row(array, axis))
    return rows


def _row(array: npt.NDArray[np.generic], axis: int | None) -> dict[str, Any]:
    by_channel = _by_channel(array, axis)
    low = np.asarray(by_channel.min(axis=1), np.float64)
    high = np.asarray(by_channel.max(axis=1), np.float64)
    channels, each = len(low), -(-len(low) // GROUPS)
    starts = np.arange(0, channels, each)
    flat = array.reshape(-1)
    flat = np.asarray(flat[:: -(-flat.size // SAMPLE)], np.float32)
    flat = flat[np.isfinite(flat)]
    counts, edges = np.histogram(flat, BINS) if flat.size else (np.zeros(1), np.zeros(2))
    return {
        "shape": list(array.shape),
        "axis": axis,
        "channels": channels,
        "grouped": each,
        "low": rounded_all(np.minimum.reduceat(low, starts)),
        "high": rounded_all(np.maximum.reduceat(high, starts)),
        "histogram": {
            "start": rounded(edges[0]),
            "width": rounded(edges[1] - edges[0]),
            "counts": [int(c) for c in counts],
        },
    }


def _by_channel(array: npt.NDArray[np.generic], axis: int | None) -> npt.NDArray[Any]:
    """One row for each channel; a single row where the whole weight has one scale."""
    if axis is None or not -array.ndim <= axis < array.ndim:
        return np.asarray(array.reshape(1, -1))
    moved = np.moveaxis(array, axis, 0)
    return np.asarray(moved.reshape(moved.shape[0], -1))
