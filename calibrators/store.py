"""What is remembered of a tensor while data stream by; every estimator reads the same store."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.histogram import Histogram

__all__ = ["TensorStore"]


@dataclass
class TensorStore:
    """Mergeable statistics of one tensor; memory does not grow with the data.

    Attributes:
        low: exact minimum over all elements; +inf before any data.
        high: exact maximum over all elements; -inf before any data.
        elements: how many elements the limits cover.
        histogram: of a sample of the elements (all values by default).
    """

    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def update(
        self,
        low: float,
        high: float,
        elements: int,
        sample: npt.NDArray[np.generic] | None = None,
        weight: int = 1,
    ) -> None:
        """Take in one more batch: its exact limits, and a sample whose values count ``weight`` times."""
        self.low = min(self.low, low)
        self.high = max(self.high, high)
        self.elements += elements
        if sample is not None:
            self.histogram.update(sample, weight)

    def observe(self, values: npt.NDArray[np.generic]) -> None:
        """Take in a whole batch that lies in memory."""
        if values.size:
            self.update(float(values.min()), float(values.max()), values.size, values)

    def merge(self, other: TensorStore) -> None:
        """Take in what another store saw; the same as having seen its data."""
        self.update(other.low, other.high, other.elements)
        self.histogram.merge(other.histogram)

    def copy(self, capacity: int | None = None) -> TensorStore:
        """An independent copy, with a smaller histogram if asked for."""
        found = TensorStore(histogram=Histogram(capacity or self.histogram.capacity))
        found.merge(self)
        return found

    @property
    def empty(self) -> bool:
        """Whether no element was seen."""
        return self.low > self.high

    @property
    def sampled_share(self) -> float:
        """Counted values per element: what one element weighs against the histogram's counts."""
        return self.histogram.total / self.elements if self.elements else 0.0
