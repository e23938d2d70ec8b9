"""Chooses few samples out of many so that they differ: greedy k-centre on coarse descriptors.

Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: starting from the sample
nearest the mean, the next one is always the farthest from all chosen; at most twice the best radius.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.data.inputs import Feed
from qcompile.data.sources import FeedSet

__all__ = ["diverse_indices", "every_fourth", "hold_back"]

_SCAN_LIMIT = 2000
_CELLS = 64


def describe(feed: Feed) -> npt.NDArray[np.float64]:
    """A short descriptor: for each input 64 means of equal runs, the spread, and the length."""
    parts = []
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        if array.dtype.kind == "U":
            array = array.reshape(-1).view(np.uint32)  # code points
        flat = np.asarray(array, np.float64).ravel()
        if not flat.size:  # a cache that is empty at the start
            parts.append(np.zeros(_CELLS + 2))
            continue
        cells = np.array_split(flat, _CELLS) if flat.size >= _CELLS else [flat]
        means = np.zeros(_CELLS)
        means[: len(cells)] = [c.mean() for c in cells]
        parts.append(np.concatenate([means, [flat.std(), np.log1p(flat.size)]]))
    return np.concatenate(parts)


def diverse_indices(feeds: FeedSet, count: int) -> list[int]:
    """Indices (ascending) of ``count`` samples that differ; all when there are no more than that.

    Of more than 2,000 samples an even stride of 2,000 is looked at.
    """
    total = len(feeds)
    if total <= count:
        return list(range(total))
    scanned = np.unique(np.linspace(0, total - 1, min(total, max(_SCAN_LIMIT, count))).astype(int))
    points = np.stack([describe(feeds.load(int(i))) for i in scanned])
    points = (points - points.mean(0)) / np.maximum(points.std(0), 1e-12)
    chosen = [int(np.argmin((points**2).sum(1)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return sorted(int(scanned[i]) for i in chosen)


def hold_back(total: int) -> tuple[list[int], list[int]]:
    """(calibration, held-back) indices: every fourth sample, at most 32, is kept for the gate.

    With fewer than four samples both are all of them.
    """
    if total < 4:
        return list(range(total)), list(range(total))
    held = list(range(3, total, 4))
    if len(held) > 32:
        held = [held[i] for i in np.linspace(0, len(held) - 1, 32).astype(int)]
    kept = set(held)
    return [i for i in range(total) if i not in kept], held


def every_fourth(total: int) -> frozenset[int]:
    """Which of ``total`` samples judge what the others taught: every fourth, or one of two or three."""
    return frozenset(range(3, total, 4)) or frozenset({total - 1} if total > 1 else ())
