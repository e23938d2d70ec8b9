"""Search for the range that loses least: one descent for every loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["search_range"]

Values = npt.NDArray[np.float64]
Loss = Callable[[Values, Values], Values]
"""Lows and highs of candidate ranges, both (k,) -> the loss of each."""

_SHRINK = np.concatenate([np.linspace(1.0, 0.3, 29), np.geomspace(0.3, 1e-3, 25)[1:]])
"""Fractions of the full range that are tried: fine where most optima lie, far enough for outliers."""

_NEAR = np.linspace(0.96, 1.04, 9)


def search_range(low: float, high: float, loss: Loss, *, stride: int = 1) -> tuple[float, float]:
    """The range within [low, high], widened to include 0, with the least loss that was found.

    Both ends shrink together first, then each alone, then in finer steps. Ties go to the wider one.
    ``stride`` thins the candidates out, for losses that are dear.
    """
    shrink, near = _SHRINK[::stride], _NEAR[::stride]
    ends = np.array([min(low, 0.0), max(high, 0.0)])
    best = ends.copy()
    least = float(loss(best[:1], best[1:])[0])

    def try_all(lows: Values, highs: Values) -> None:
        nonlocal best, least
        losses = loss(lows, highs)
        i = int(np.argmin(losses))
        if losses[i] < least:
            best, least = np.array([lows[i], highs[i]]), float(losses[i])

    try_all(ends[0] * shrink, ends[1] * shrink)
    for steps in (shrink, None, None):
        for side in (0, 1):
            if ends[side] == 0.0:
                continue
            tried = ends[side] * steps if steps is not None else best[side] * near
            tried = np.clip(tried, ends[0], ends[1])
            fixed = np.full(len(tried), best[1 - side])
            try_all(*((tried, fixed) if side == 0 else (fixed, tried)))
    return float(best[0]), float(best[1])
