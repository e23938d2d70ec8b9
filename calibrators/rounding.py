"""Round weights so that a layer's output errs least, not each weight.

Given the covariance H of what a weight is multiplied with, the output error of integers q is
``(w - s q) H (w - s q)^T`` for each output channel. `round_weights` minimizes it approximately:

1. One weight after the other is rounded, and the error made so far is carried into those to come
   (GPTQ: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
   Generative Pre-trained Transformers", 2022; the same as Babai's nearest plane). Written here on
   the factor H = R R^T with R upper triangular, so that no inverse is needed.
2. Coordinate descent: each integer in turn moves to where the error is least, until none moves. What
   AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020) does
   by gradients; here exact, and not limited to up or down.

`shrink_scales` chooses each channel's range by output error rather than by its largest weight.

Arrays are ``(groups, d, out)``: d weights for each of ``out`` channels that read the same input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "DAMPING",
    "damped",
    "factor",
    "nearest",
    "output_error",
    "round_weights",
    "shrink_scales",
]

Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean variance added to every variance: what a few samples did not show is not nothing."""

_BLOCK = 64
"""Columns whose effect on the rest is applied by one matrix product."""

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Ranges tried, as shares of the largest weight."""


def damped(covariance: Array, share: float = DAMPING) -> Array:
    """(groups, d, d) with a share of the mean variance on the diagonal."""
    d = covariance.shape[-1]
    mean = np.einsum("gii->g", covariance) / d
    mean = np.where(mean > 0, mean, 1.0)
    result = np.array(covariance)
    result[:, np.arange(d), np.arange(d)] += share * mean[:, None]
    return result


def factor(covariance: Array) -> tuple[Array, Array]:
    """The damped covariance (groups, d, d), and upper triangular R with R R^T = it.

    Where rounding of sums left it indefinite, more damping makes up for it.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if not np.isfinite(covariance).all():
        raise ValueError("a covariance holds NaN or infinity")
    share = DAMPING
    while True:
        known = damped(covariance, share)
        try:
            turned = np.linalg.cholesky(known[:, ::-1, ::-1])
        except np.linalg.LinAlgError:
            share *= 10.0
            continue
        return known, np.ascontiguousarray(turned[:, ::-1, ::-1])


def nearest(scaled: Array, low: int, high: int) -> Array:
    """Integers nearest to ``scaled`` = w / s, within limits."""
    return np.asarray(np.clip(np.rint(scaled), low, high))


def output_error(error: Array, covariance: Array) -> Array:
    """(groups, out): mean square of the output for weight errors (groups, d, out)."""
    return np.asarray(np.einsum("gdo,gdo->go", np.matmul(covariance, error), error))


def round_weights(
    scaled: Array, covariance: Array, low: int, high: int, *, sweeps: int = 2
) -> Array:
    """Integers for ``scaled`` = w / s, (groups, d, out), that make the output err least.

    Args:
        scaled: weights in units of their scales.
        covariance: (groups, d, d) of the inputs.
        low: lowest integer.
        high: highest integer.
        sweeps: at most so many rounds of coordinate descent.
    """
    # Inputs that vary most are rounded first, while all others can still make up for them.
    order = np.argsort(-np.einsum("gii->gi", covariance), axis=1, kind="stable")
    groups = np.arange(len(covariance))[:, None]
    turned = covariance[groups[:, :, None], order[:, :, None], order[:, None, :]]
    known, upper = factor(np.ascontiguousarray(turned))
    weights = np.ascontiguousarray(scaled[groups, order])
    integers = _successive(weights, upper, low, high)
    _descend(weights, integers, known, low, high, sweeps)
    # Neither step is bound to end below the nearest integers; a channel that does not takes those.
    plain = nearest(weights, low, high)
    worse = output_error(integers - weights, known) > output_error(plain - weights, known)
    integers = np.where(worse[:, None, :], plain, integers)
    result = np.empty_like(integers)
    result[groups, order] = integers
    return result


def _successive(weights: Array, upper: Array, low: int, high: int) -> Array:
    """Row after row, nearest to the weight plus what the rows before left over."""
    d = weights.shape[1]
    upper = upper / np.einsum("gii->gi", upper)[:, None, :]
    integers = np.empty_like(weights)
    error = np.zeros_like(weights)
    carried = np.zeros_like(weights)
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        for j in range(start, stop):
            target = weights[:, j] + carried[:, j]
            if j > start:
                row = upper[:, start:j, j][:, None, :]
                target += np.matmul(row, error[:, start:j])[:, 0]
            chosen = np.clip(np.rint(target), low, high)
            integers[:, j] = chosen
            error[:, j] = weights[:, j] - chosen
        if stop < d:
            across = upper[:, start:stop, stop:].transpose(0, 2, 1)
            carried[:, stop:] += np.matmul(across, error[:, start:stop])
    return integers


def _descend(
    weights: Array, integers: Array, covariance: Array, low: int, high: int, sweeps: int
) -> None:
    """Move single integers of ``integers``, in place, as long as the error falls."""
    d = weights.shape[1]
    gradient = np.matmul(covariance, integers - weights)
    inverse = 1.0 / np.einsum("gii->gi", covariance)
    for _ in range(sweeps):
        moved = False
        for start in range(0, d, _BLOCK):
            stop = min(start + _BLOCK, d)
            steps = np.zeros((weights.shape[0], stop - start, weights.shape[2]))
            for j in range(start, stop):
                slope = gradient[:, j]
                if j > start:
                    row = covariance[:, j, start:j][:, None, :]
                    slope = slope + np.matmul(row, steps[:, : j - start])[:, 0]
                old = integers[:, j]
                new = np.clip(old - np.rint(slope * inverse[:, j, None]), low, high)
                steps[:, j - start] = new - old
                integers[:, j] = new
            if steps.any():
                moved = True
                gradient += np.matmul(covariance[:, :, start:stop], steps)
        if not moved:
            return


def shrink_scales(
    weights: Array, scale: Array, variance: Array, low: int, high: int, *, joint: bool = False
) -> Array:
    """(groups, out): for each channel, the share of ``scale`` with the least output error.

    Judged on weights rounded to nearest and on variances alone: in trials the covariances changed
    the choice little and cost as much as the rounding itself.

    Args:
        weights: (groups, d, out), real.
        scale: (groups, out), that represents the largest weight.
        variance: (groups, d) of the inputs.
        low: lowest integer.
        high: highest integer.
        joint: choose one share for all channels (a weight with a single scale).
    """
    d = weights.shape[1]
    mean = variance.mean(axis=1, keepdims=True)
    known = (variance + DAMPING * np.where(mean > 0, mean, 1.0))[:, :, None]
    best = np.full(scale.shape, np.inf)
    chosen = np.ones(scale.shape)
    for share in SHRINKS if d > 1 else ():
        tried = (scale * share)[:, None, :]
        error = weights - nearest(weights / tried, low, high) * tried
        found = (error * error * known).sum(axis=1)
        if joint:
            found = np.broadcast_to(found.sum(), found.shape)
        better = found < best
        best = np.where(better, found, best)
        chosen = np.where(better, share, chosen)
    return chosen
