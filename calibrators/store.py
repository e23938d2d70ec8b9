"""What is remembered of a tensor while data stream by: exact limits (and, next, a histogram)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.ir.affine import TensorRange

__all__ = ["TensorStore"]


@dataclass
class TensorStore:
    """Mergeable statistics of one tensor; memory does not grow with the data.

    Attributes:
        low: exact minimum seen; +inf before any data.
        high: exact maximum seen; -inf before any data.
    """

    low: float = float("inf")
    high: float = float("-inf")

    def update(self, low: float, high: float) -> None:
        """Take in the exact limits of one more batch."""
        self.low = min(self.low, low)
        self.high = max(self.high, high)

    def merge(self, other: TensorStore) -> None:
        """Take in what another store saw; the same as having seen its data."""
        self.update(other.low, other.high)

    def limits(self) -> TensorRange:
        """The exact limits; [0, 0] before any data."""
        if self.low > self.high:
            return TensorRange(np.float64(0.0), np.float64(0.0))
        return TensorRange(np.float64(self.low), np.float64(self.high))
