"""Search for the range that loses least: one descent for every loss, for many tensors at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["search_ranges"]

Values = npt.NDArray[np.float64]
Loss = Callable[[Values, Values], Values]
"""Lows and highs of candidate ranges, both (tensors, candidates) -> the loss of each."""

_SHRINK = np.concatenate([np.linspace(1.0, 0.3, 29), np.geomspace(0.3, 1e-3, 25)[1:]])
"""Fractions of the full range that are tried: fine where most optima lie, far enough for outliers."""

_NEAR = np.linspace(0.96, 1.04, 9)


def search_ranges(
    lows: Values, highs: Values, loss: Loss, *, stride: int = 1
) -> tuple[Values, Values]:
    """For each tensor the range within [low, high], widened to include 0, with the least loss found.

    Both ends shrink together first, then each alone, then in finer steps. Ties go to the wider one.

    Args:
        lows: (tensors,), the full ranges.
        highs: (tensors,).
        loss: tells candidates apart.
        stride: thins the candidates out, for losses that are dear.
    """
    full = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    best = full[0].copy(), full[1].copy()
    least = loss(full[0][:, None], full[1][:, None])[:, 0]
    shrink, near = _SHRINK[::stride], _NEAR[::stride]
    rows = np.arange(len(lows))

    def try_all(low: Values, high: Values) -> None:
        losses = loss(low, high)
        i = np.argmin(losses, axis=1)
        better = losses[rows, i] < least
        least[better] = losses[rows, i][better]
        best[0][better] = low[rows, i][better]
        best[1][better] = high[rows, i][better]

    try_all(full[0][:, None] * shrink, full[1][:, None] * shrink)
    for steps in (shrink, None, None):
        for side in (0, 1):
            if not full[side].any():
                continue
            if steps is None:
                tried = best[side][:, None] * near
                tried = np.clip(tried, full[0][:, None], full[1][:, None])
            else:
                tried = full[side][:, None] * steps
            fixed = np.broadcast_to(best[1 - side][:, None], tried.shape)
            try_all(*((tried, fixed) if side == 0 else (fixed, tried)))
    return best
