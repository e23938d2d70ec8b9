"""Distributions over a vocabulary, beside each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Likeness", "log_softmax", "surprise"]

LogShares = npt.NDArray[np.float64]


def log_softmax(logits: npt.NDArray[Any]) -> LogShares:
    """Along the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def surprise(logits: npt.NDArray[Any], tokens: npt.NDArray[np.integer[Any]]) -> LogShares:
    """Negative log-likelihood in nats of each of these tokens; one entry a row of logits.

    Exponentials are float32, their sum is not: one part in a million, in a fifth of the time of all shares.
    """
    rows = np.asarray(logits, np.float32)
    most = rows.max(-1)
    total = np.exp(rows - most[..., None]).sum(-1, dtype=np.float64)
    taken = np.take_along_axis(rows, tokens[..., None], -1)[..., 0]
    return np.asarray(np.log(total) - (taken.astype(np.float64) - most), np.float64)


@dataclass
class Likeness:
    """Sums over predictions of two models.

    Attributes:
        positions: predictions compared.
    """

    positions: int = 0
    _same: int = 0
    _divergence: float = 0.0
    _predicted: int = 0
    _loss: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, first: LogShares, second: LogShares, following: npt.NDArray[np.int64]) -> None:
        """Predictions (rows, tokens, vocabulary) and the tokens that did follow the first of them."""
        following = np.atleast_2d(following)
        self._same += int((first.argmax(-1) == second.argmax(-1)).sum())
        self.positions += first[..., 0].size
        self._divergence += float((np.exp(first) * (first - second)).sum())
        self._predicted += following.size
        for i, rows in enumerate((first, second)):
            known = rows[:, : following.shape[1]]
            self._loss[i] -= float(np.take_along_axis(known, following[..., None], -1).sum())

    @property
    def agreement(self) -> float:
        """Share of predictions with the same most likely token."""
        return self._same / max(1, self.positions)

    @property
    def kl(self) -> float:
        """Mean divergence from the first model's distribution, in nats."""
        return self._divergence / max(1, self.positions)

    @property
    def perplexity(self) -> tuple[float, float]:
        """Of each model, on the tokens that followed."""
        first, second = (float(np.exp(loss / max(1, self._predicted))) for loss in self._loss)
        return first, second
