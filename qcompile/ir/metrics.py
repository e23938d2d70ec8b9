"""How far one result is from another: defined for every input, never NaN.

Where both results hold the same NaN or infinity they agree and the element is left out; where only one
does, nothing is right any more and the metric says its worst.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qcompile.ir.errors import ModelError

__all__ = ["cosine", "kl", "max_abs_error", "sqnr_db", "top_k_agreement"]

Array = npt.NDArray[np.generic]
Values = npt.NDArray[np.float64]


def sqnr_db(reference: Array, result: Array) -> float:
    """Signal to quantization noise in dB: 10 log10(sum ref^2 / sum (ref - result)^2).

    +inf for equal results, -inf for an error where the reference is all zero or the result not finite.

    Examples:
        >>> round(sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])), 2)
        20.0
    """
    pair = _comparable(reference, result)
    if pair is None:
        return -math.inf
    one, two = pair
    # Scaled by the largest value, squares neither overflow nor vanish.
    largest = max(np.abs(one).max(initial=0.0), np.abs(two).max(initial=0.0)) or 1.0
    signal = float(np.square(one / largest).sum())
    noise = float(np.square(one / largest - two / largest).sum())
    if noise == 0.0:
        return math.inf
    return -math.inf if signal == 0.0 else 10.0 * math.log10(signal / noise)


def cosine(reference: Array, result: Array) -> float:
    """Cosine of the angle between two results: 1 for both zero, 0 for one zero or not finite."""
    pair = _comparable(reference, result)
    if pair is None:
        return 0.0
    one, two = (v / (np.abs(v).max(initial=0.0) or 1.0) for v in pair)
    lengths = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    if lengths[0] == 0.0 or lengths[1] == 0.0:
        return 1.0 if lengths == (0.0, 0.0) else 0.0
    return float(np.clip(one @ two / (lengths[0] * lengths[1]), -1.0, 1.0))


def max_abs_error(reference: Array, result: Array) -> float:
    """The largest difference of any element; +inf when a result is not finite, 0 when both are empty."""
    pair = _comparable(reference, result)
    if pair is None:
        return math.inf
    return float(np.abs(pair[0] - pair[1]).max(initial=0.0))


def top_k_agreement(reference: Array, result: Array, k: int = 1, axis: int = -1) -> float:
    """Mean share of the ``k`` largest along ``axis`` that both results have in common, 0 to 1.

    Equal values rank by their index; NaN ranks last. ``k`` above the number of classes means all.
    """
    _same_shape(reference, result)
    if reference.ndim == 0 or reference.size == 0:
        return 1.0
    classes = reference.shape[axis]
    k = min(max(k, 1), classes)
    ranks = [
        np.argsort(-_ranked(v, axis), axis=-1, kind="stable")[:, :k] for v in (reference, result)
    ]
    both = (ranks[0][:, :, None] == ranks[1][:, None, :]).any(axis=2)
    return float(both.mean())


def _ranked(values: Array, axis: int) -> Values:
    rows = np.moveaxis(values.astype(np.float64), axis, -1).reshape(-1, values.shape[axis])
    return np.where(np.isnan(rows), -np.inf, rows)


def kl(reference: Array, result: Array, axis: int = -1, *, logits: bool = True) -> float:
    """Mean Kullback-Leibler divergence in nats of the distributions along ``axis``.

    Args:
        reference: logits, or probabilities with ``logits=False``.
        result: the same of the other model.
        axis: of the classes.
        logits: whether a softmax comes first.

    +inf when a result is not finite or gives 0 to what the reference holds possible.
    """
    _same_shape(reference, result)
    if reference.size == 0 or reference.ndim == 0:
        return 0.0
    if not (np.isfinite(reference).all() and np.isfinite(result).all()):
        return math.inf
    rows = [np.moveaxis(v.astype(np.float64), axis, -1) for v in (reference, result)]
    one, two = (_log_softmax(v) if logits else _log(v) for v in rows)
    possible = one > -np.inf
    with np.errstate(invalid="ignore"):
        terms = np.where(possible, np.exp(one) * (one - two), 0.0)
    return max(float(terms.sum(axis=-1).mean()), 0.0)


def _log_softmax(values: Values) -> Values:
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _log(values: Values) -> Values:
    positive = np.maximum(values, 0.0)
    total = positive.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(positive / np.where(total > 0, total, 1.0)))


def _same_shape(reference: Array, result: Array) -> None:
    if reference.shape != result.shape:
        raise ModelError(
            f"results of shape {reference.shape} and {result.shape} cannot be compared: "
            "the models must give outputs of one shape"
        )


def _comparable(reference: Array, result: Array) -> tuple[Values, Values] | None:
    """Both as flat float64 without elements that are the same non-finite value, or None."""
    _same_shape(reference, result)
    one, two = (np.asarray(v, np.float64).reshape(-1) for v in (reference, result))
    finite = np.isfinite(one) & np.isfinite(two)
    if finite.all():
        return one, two
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    if not (finite | same).all():
        return None
    return one[finite], two[finite]
