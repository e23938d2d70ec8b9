"""Histograms that widen and merge exactly: bins of power-of-two width, anchored at zero.

Bin i covers [i * 2**e, (i + 1) * 2**e). Doubling the width maps bin i to i >> 1, so that counts are
only ever added, never split, and a histogram depends on the values it saw but not on their order or
on how they were shared out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["CAPACITY", "Histogram"]

CAPACITY = 4096
"""Most bins a histogram may have: at least 8 for each of 256 levels, 32 KiB."""

_LOWEST_EXPONENT = -100
"""Values below 2**-100 are not told apart; float32 arithmetic on them is not meaningful."""

_RELATIVE_BITS = 24
"""Bins are never narrower than 2**-24 of the largest value: float32 tells no more apart."""

Counts = npt.NDArray[np.int64]


@dataclass
class Histogram:
    """Counts of real values; memory is bounded by ``capacity`` bins.

    Attributes:
        capacity: most bins.
        exponent: bins are 2**exponent wide.
        first: index of the bin that ``counts[0]`` counts.
        counts: values in each bin, zeros left out; empty before any value.
        zeros: values that are zero (they cost no error under any scale, and many tensors are mostly
            zeros).
        low: lowest value, +inf before any.
        high: highest value, -inf before any.
    """

    capacity: int = CAPACITY
    exponent: int = _LOWEST_EXPONENT
    first: int = 0
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf

    def __post_init__(self) -> None:
        """Refuse a capacity that cannot hold both signs.

        Raises:
            ValueError: fewer than two bins.
        """
        if self.capacity < 2:
            raise ValueError(
                f"a histogram needs at least 2 bins, one each side of 0, not {self.capacity}"
            )

    @property
    def total(self) -> int:
        """How many values were counted, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Bounds of the bins, one more than there are bins."""
        index = np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64)
        return np.asarray(index * self.width, np.float64)

    def update(self, values: npt.NDArray[np.generic], weight: int = 1) -> None:
        """Count finite ``values``, each ``weight`` times."""
        if values.size == 0:
            return
        self._cover(float(values.min()), float(values.max()))
        # In float64 the product with a power of two is exact, so that values near a bin's edge never
        # change sides when the bins widen.
        index = np.multiply(values.reshape(-1), math.ldexp(1.0, -self.exponent), dtype=np.float64)
        np.floor(index, out=index)
        index -= self.first
        counts = np.bincount(index.astype(np.int64), minlength=len(self.counts))
        zeros = values.size - int(np.count_nonzero(values))
        if zeros:
            counts[-self.first] -= zeros
            self.zeros += zeros * weight
        self.counts += counts if weight == 1 else counts * weight

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``; the same as having seen its values.

        Raises:
            ValueError: ``other`` has a lower capacity, so that its bins may be too wide.
        """
        if other.capacity < self.capacity:
            raise ValueError(
                f"a histogram of {self.capacity} bins cannot take in one of {other.capacity}"
            )
        self.zeros += other.zeros
        if len(other.counts) == 0:
            return
        self._cover(other.low, other.high)
        first, counts = _widened(other.first, other.counts, self.exponent - other.exponent)
        self.counts[first - self.first : first - self.first + len(counts)] += counts

    def copy(self, capacity: int | None = None) -> Histogram:
        """An independent copy, with fewer bins if asked for."""
        found = Histogram(capacity or self.capacity)
        found.merge(self)
        return found

    def coarse(self, bins: int) -> tuple[int, Counts, float]:
        """First index, counts and width of the same histogram in at most ``bins`` (two or more) bins."""
        shift = 0
        last = self.first + len(self.counts) - 1
        while (last >> shift) - (self.first >> shift) >= bins:
            shift += 1
        first, counts = _widened(self.first, self.counts, shift)
        return first, counts, math.ldexp(1.0, self.exponent + shift)

    def _cover(self, low: float, high: float) -> None:
        """Widen so that ``low`` and ``high`` have bins; bins never depend on what came first."""
        low, high = min(self.low, low), max(self.high, high)
        if (low, high) == (self.low, self.high):
            return
        self.low, self.high = low, high
        exponent = _exponent(low, high, self.capacity)
        first, last = _bin(low, exponent), _bin(high, exponent)
        old, counts = _widened(self.first, self.counts, exponent - self.exponent)
        self.counts = np.zeros(last - first + 1, np.int64)
        if len(counts):
            self.counts[old - first : old - first + len(counts)] = counts
        self.exponent, self.first = exponent, first


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent(low: float, high: float, capacity: int) -> int:
    """The lowest exponent whose bins from ``low`` to ``high`` are at most ``capacity``."""
    largest = max(abs(low), abs(high))
    exponent = max(_LOWEST_EXPONENT, math.frexp(largest)[1] - _RELATIVE_BITS)
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / capacity)[1] - 1)
    while _bin(high, exponent) - _bin(low, exponent) >= capacity:
        exponent += 1
    return exponent


def _widened(first: int, counts: Counts, shift: int) -> tuple[int, Counts]:
    """The same counts in bins 2**shift times as wide."""
    if shift == 0 or len(counts) == 0:
        return first, counts
    index = (first + np.arange(len(counts))) >> min(shift, 62)
    starts = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
    return int(index[0]), np.asarray(np.add.reduceat(counts, starts), np.int64)
