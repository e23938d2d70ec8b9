"""Factors that even out the channels of a layer's input, and what they do to its integer product.

A factor of ``a^alpha / w^(1 - alpha)`` for a channel whose activations reach a and whose weights reach
w shares the difficulty between the two (Xiao et al., "SmoothQuant", 2022; alpha = 1/2 is the cross-layer
equalization of Nagel et al., "Data-Free Quantization", 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["ALPHAS", "even_exponents", "product_error", "weight_peaks"]

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""How much of the difficulty leaves the activations."""

REACH = 6
"""Largest power of two by which a channel is scaled: more is an outlier of few samples, or a dead one."""

SHARES = (1.0, 0.75)
"""Ranges tried, as shares of the extremes: estimators of ranges clip outliers, too."""


def weight_peaks(weights: Sequence[Array]) -> Array:
    """(channels,): how far each input channel reaches, of what its output channels' scales allow.

    Args:
        weights: for each reader (channels, taps and outputs), divided by the largest weight of each
            output channel.
    """
    return np.asarray(np.max([np.abs(w).max(axis=1) for w in weights], axis=0))


def even_exponents(
    activations: Array, weights: Array, alpha: float, least: Array, fixed: Array
) -> npt.NDArray[np.int64]:
    """(channels,): k of factors 2^k; the channel that reaches furthest keeps 0.

    Args:
        activations: (channels,) largest absolute values.
        weights: (channels,) see ``weight_peaks``.
        alpha: how much of the difficulty leaves the activations.
        least: (channels,) least factor that is allowed; 0 without a limit.
        fixed: (channels,) channels that keep the factor 1.
    """
    live = (activations > 0) & (weights > 0)
    if not live.any():
        return np.zeros(len(activations), np.int64)
    a, w = (np.where(live, v, 1.0) for v in (activations, weights))
    wanted = alpha * np.log2(a) - (1 - alpha) * np.log2(w)
    held = fixed.astype(bool)
    # Where some channels must stay, the others follow the largest of them.
    top = np.max(wanted[live & held]) if (live & held).any() else np.max(wanted[live])
    found = np.clip(np.rint(wanted - top), -REACH, 0 if held.any() else REACH)
    floor = np.where(least > 0, np.ceil(np.log2(np.where(least > 0, least, 1.0))), -REACH)
    found = np.maximum(found, np.minimum(floor, 0))
    return np.where(live & ~held, found, 0).astype(np.int64)


def product_error(x: FloatArray, weights: FloatArray, factor: FloatArray) -> float:
    """Share of the product's energy that rounding both to 8 bits costs.

    Args:
        x: (groups, d, positions), asymmetric with one scale.
        weights: (groups, d, out), symmetric with a scale per output.
        factor: (groups, d): x is divided by it, the weights multiplied.
    """
    exact = np.matmul(weights.transpose(0, 2, 1), x)
    energy = float(np.mean(np.square(exact), dtype=np.float64))
    even = x / factor[:, :, None]
    turned = (weights * factor[:, :, None]).transpose(0, 2, 1)
    scale = np.maximum(np.abs(turned).max(axis=2, keepdims=True) / 127, 1e-30)
    rounded = np.rint(turned / scale) * scale
    best = np.inf
    for share in SHARES:
        low, high = min(0.0, float(even.min()) * share), max(0.0, float(even.max()) * share)
        step = max((high - low) / 255, 1e-30)
        zero = np.rint(-low / step)
        seen = (np.clip(np.rint(even / step) + zero, 0, 255) - zero) * step
        error = np.matmul(rounded, seen.astype(np.float32)) - exact
        best = min(best, float(np.mean(np.square(error), dtype=np.float64)))
    return best / max(energy, 1e-30)
