"""Confidence interval of a median from order statistics: no distribution assumed, no random numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "median_interval"]


@dataclass(frozen=True)
class Interval:
    """A median with its confidence interval.

    Attributes:
        value: the median.
        low: lower end.
        high: upper end.
        count: how many values it was taken from.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the width relative to the value: 0.02 is +-2 %. For ratios, so taken on a log scale."""
        if not (self.low > 0 and math.isfinite(self.high)):
            return math.inf
        return math.sqrt(self.high / self.low) - 1.0

    def reach(self, digits: int = 2, unit: str = "") -> str:
        """From where to where the value may lie, in words."""
        if math.isinf(self.high):
            return "timed too briefly for an interval"
        low, high = (f"{v:.{digits}f}{unit}" for v in (self.low, self.high))
        return f"{low} to {high} with 95 % confidence"


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of ``values`` with an interval that holds the true median with ``confidence``.

    The true median lies between the k-th smallest and the k-th largest value with probability
    1 - 2 P(Binomial(n, 1/2) < k); the largest such k is taken (David and Nagaraja, Order
    Statistics, 2003, section 7.1). Below six values no pair of them reaches 95 %: then Student's
    t interval of the logarithms is taken (values must be positive), open (0 to infinity) for one.

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    Interval(value=4.5, low=1.0, high=8.0, count=8)

    Raises:
        ValueError: ``values`` is empty.
    """
    ordered = sorted(values)
    n = len(ordered)
    if n == 0:
        raise ValueError("no values to take a median of")
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    # exact integers: n can be some thousands, and 2**n then exceeds a float
    tail, k, term = 0, 0, 1
    allowed = (1.0 - confidence) / 2
    limit = int(allowed * (1 << 53)) * (1 << n) >> 53
    while k <= n // 2 and tail + term <= limit:
        tail += term
        term = term * (n - k) // (k + 1)
        k += 1
    if k == 0:
        return _student(middle, ordered)
    return Interval(middle, ordered[k - 1], ordered[n - k], n)


_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Count of values -> two-sided 95 % quantile of Student's t with one degree of freedom less."""


def _student(middle: float, values: Sequence[float]) -> Interval:
    n = len(values)
    if n not in _T95 or values[0] <= 0:
        return Interval(middle, 0.0, math.inf, n)
    logs = [math.log(v) for v in values]
    reach = math.exp(_T95[n] * statistics.stdev(logs) / math.sqrt(n))
    center = math.exp(statistics.fmean(logs))
    return Interval(middle, min(middle, center / reach), max(middle, center * reach), n)
