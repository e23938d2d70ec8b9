"""Refit weights to inputs that carry noise.

A quantized layer reads x' where the float layer reads x. The weights that make its output differ
least from float's, mean square, are the regression of W x on x': ``V = W E[x x'^T] E[x' x'^T]^-1``.
Pulled towards W by a ridge, for a few samples show the noise only roughly:

    V = (W X + r W) (H + r)^-1,   X = cov(x, x'),   H = cov(x', x'),   r = ridge * mean(diag H)

Regression on noisy inputs shrinks: it answers noise by smaller outputs, least squares or not (the
attenuation of Fuller, "Measurement Error Models", 1987). A rare large output, the score of a detection or of
a rare character, then falls below its rivals, and no mean square error sees it. A slope of 1 on float's
output, var(y_c) / cov(y_c, V_c x') times larger, takes all of that back and adds as much noise again, which
every layer behind it has to bear. Each output is made larger by the square root of it: without a ridge it
then has float's variance (the reduced major axis, between both regressions).

Rounding V by the covariance H then minimizes the whole difference. The same aim, for GPTQ, is that
of Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", 2025; the
mean of the difference is what the empirical bias correction of Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", 2019, removes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Moments", "position_weights", "refit"]

MOST = 1.5
"""Largest factor by which an output is made larger: noise grows with it."""

EVENING = 0.03
"""Share of the mean energy added to each position's, so that empty positions do not rule either."""

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]


class Moments:
    """Means and covariances of what a layer reads in the float and in the quantized model, streamed.

    Args:
        centred: take the means out; False where no bias could make up for them.
        products: keep covariances, d x d each; without them there are means alone.
    """

    def __init__(self, *, centred: bool = True, products: bool = True) -> None:
        self._centred, self._kept = centred, products
        self._weight = 0.0
        self._reference = np.zeros((0, 0), np.float32)
        self._sums = np.zeros((2, 0, 0))
        self._products = np.zeros((2, 0, 0, 0))
        self._level = np.zeros((0, 0), np.float32)
        self._outputs = np.zeros((2, 0, 0))

    def update(
        self, exact: FloatArray, noisy: FloatArray, weights: FloatArray, outputs: FloatArray
    ) -> None:
        """Take in columns (groups, d, p).

        Args:
            exact: of the float model.
            noisy: of the quantized model, at the same positions.
            weights: (p,), how much each position counts.
            outputs: (groups, out, p), what the float layer makes of ``exact``.
        """
        if not self._weight:
            groups, d, _ = exact.shape
            # Differences from a value near the mean: float32 products lose nothing to large means.
            mean = exact.mean(axis=2, dtype=np.float64).astype(np.float32)
            self._reference = mean if self._centred else np.zeros_like(mean)
            self._sums = np.zeros((2, groups, d))
            level = outputs.mean(axis=2, dtype=np.float64).astype(np.float32)
            self._level = level if self._centred else np.zeros_like(level)
            self._outputs = np.zeros((2, *level.shape))
            if self._kept:
                self._products = np.zeros((2, groups, d, d))
        root = np.sqrt(weights)
        x = (exact - self._reference[:, :, None]) * root
        y = (noisy - self._reference[:, :, None]) * root
        self._sums[0] += np.matmul(x, root)
        self._sums[1] += np.matmul(y, root)
        if self._kept:
            self._products[0] += np.matmul(x, y.transpose(0, 2, 1))
            self._products[1] += np.matmul(y, y.transpose(0, 2, 1))
        self._weight += float(weights.sum(dtype=np.float64))
        z = (outputs - self._level[:, :, None]) * root
        self._outputs[0] += np.matmul(z, root)
        self._outputs[1] += np.einsum("gop,gop->go", z, z)

    def _offset(self, which: int) -> Array:
        offset = self._sums[which] / self._weight
        return offset if self._centred else np.zeros_like(offset)

    def finite(self) -> bool:
        """Whether no value was infinite or NaN."""
        return bool(np.isfinite(self._sums).all() and np.isfinite(self._products).all())

    @property
    def exact_mean(self) -> Array:
        """(groups, d), of the float model's inputs; 0 where means are left in."""
        return np.asarray(self._offset(0) + self._reference)

    @property
    def noisy_mean(self) -> Array:
        """(groups, d), of the quantized model's inputs; 0 where means are left in."""
        return np.asarray(self._offset(1) + self._reference)

    @property
    def cross(self) -> Array:
        """(groups, d, d): covariance of exact (rows) with noisy inputs."""
        outer = self._offset(0)[:, :, None] * self._offset(1)[:, None, :]
        return np.asarray(self._products[0] / self._weight - outer)

    @property
    def wanted(self) -> Array:
        """(groups, out): variance of the float layer's output, about 0 where means are left in."""
        mean, energy = self._outputs / self._weight
        return np.asarray(energy - np.square(mean) if self._centred else energy)

    @property
    def noisy(self) -> Array:
        """(groups, d, d): covariance of the noisy inputs."""
        outer = self._offset(1)[:, :, None] * self._offset(1)[:, None, :]
        return np.asarray(self._products[1] / self._weight - outer)


def position_weights(outputs: FloatArray) -> FloatArray:
    """(p,), sum 1: how much each position of ``outputs`` (groups, out, p) counts.

    The inverse of its energy, so that a few positions with huge values (tokens that attention uses
    as a sink) do not buy their exactness with errors of all others; what follows them is normalized
    more often than not.
    """
    energy = np.square(outputs).mean(axis=(0, 1), dtype=np.float64)
    mean = energy.mean()
    weights = 1.0 / (energy / (mean if mean > 0 else 1.0) + EVENING)
    return np.asarray(weights / weights.sum(), np.float32)


def refit(weights: Array, moments: Moments, ridges: Sequence[float]) -> list[Array]:
    """For each ridge, (groups, d, out): what reads noisy inputs best, pulled towards ``weights``.

    Outputs vary as much as float's, see above.
    """
    noisy, d = moments.noisy, weights.shape[1]
    explained = np.matmul(moments.cross.transpose(0, 2, 1), weights)
    mean = np.einsum("gii->g", noisy) / d
    mean = np.where(mean > 0, mean, 1.0)[:, None, None]
    found = [
        np.linalg.solve(noisy + ridge * mean * np.eye(d), explained + ridge * mean * weights)
        for ridge in ridges
    ]
    return [np.asarray(one * _growth(one, explained, moments)[:, None, :]) for one in found]


def _growth(values: Array, explained: Array, moments: Moments) -> Array:
    """(groups, out): the root of what makes the slope of each output on float's 1."""
    together = np.einsum("gdo,gdo->go", explained, values)
    growth = np.maximum(moments.wanted, 0.0) / np.where(together > 0, together, np.inf)
    return np.asarray(np.clip(np.sqrt(growth), 1.0, MOST))
