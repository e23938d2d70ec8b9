"""Two large arrays beside each other, a run of rows at a time: what is read once stays in the cache.

A language model's logits are millions of elements a sample; a dozen passes over whole arrays in float64
take longer than the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.channel_groups import Sums, channel_axes

__all__ = ["AT_ONCE", "PairSums", "divergence_of", "pair_sums"]

AT_ONCE = 1 << 17
"""Elements in float64 that a CPU's second cache holds, with what is made of them."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass
class PairSums:
    """Of float's array and of what differs from it.

    Attributes:
        signal: energy of float's.
        noise: energy of the difference.
        dot: sum of products.
        energy: of the other.
        max_abs_error: largest difference.
        peak: largest absolute value of float's.
        ignored: elements where float's is NaN or infinite.
        nonfinite: elements where the other alone is.
        rows: with classes on the last axis.
        same_top: rows with the same largest class.
        kl: sum of the rows' divergences, in nats.
        channels: sums by channel, of each axis that may hold channels.
    """

    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    energy: float = 0.0
    max_abs_error: float = 0.0
    peak: float = 0.0
    ignored: int = 0
    nonfinite: int = 0
    rows: int = 0
    same_top: int = 0
    kl: float = 0.0
    channels: dict[int, Sums] = field(default_factory=dict)


def pair_sums(ref: Array, got: Array) -> PairSums:
    """Sums over two arrays of one shape, in float64."""
    found = PairSums()
    if not ref.size:
        return found
    axes = channel_axes(ref.shape)
    last = ref.ndim - 1
    by_row: list[Floats] = []
    by_column: list[Sums] = []
    for rows in _runs(ref, got):
        a, b = _finite(*rows, found)
        error = a - b
        found.dot += float(np.vdot(a, b))
        found.energy += float(np.vdot(b, b))
        energies = (np.einsum("rc,rc->r", x, x) for x in (a, error))
        highest = (np.maximum(x.max(1), -x.min(1)) for x in (a, error))
        by_row.append(np.stack([*energies, *highest]))
        if last in axes:
            by_column.append(
                Sums(
                    np.einsum("rc,rc->c", a, a),
                    np.einsum("rc,rc->c", error, error)[None],
                    np.abs(a).max(0),
                    np.abs(error).max(0),
                )
            )
        if ref.ndim and ref.shape[-1] > 1:
            found.rows += len(a)
            found.same_top += int(np.count_nonzero(a.argmax(1) == b.argmax(1)))
            found.kl += float(divergence_of(a, b).sum())
    each = np.concatenate(by_row, 1)
    found.signal, found.noise = float(each[0].sum()), float(each[1].sum())
    found.peak, found.max_abs_error = float(each[2].max()), float(each[3].max())
    for axis in axes:
        if axis == last:
            sums = by_column[0]
            for more in by_column[1:]:
                sums = sums.with_more(more)
            found.channels[axis] = sums
        else:
            found.channels[axis] = _of_axis(each, ref.shape[:-1], axis)
    return found


def _runs(ref: Array, got: Array) -> Iterator[tuple[Floats, Floats]]:
    """Both as rows of the last axis in float64, some at a time."""
    ref, got = (x.reshape(-1, x.shape[-1] if x.ndim else 1) for x in (ref, got))
    step = max(1, AT_ONCE // ref.shape[1])
    for i in range(0, len(ref), step):
        yield ref[i : i + step].astype(np.float64), got[i : i + step].astype(np.float64)


def _finite(a: Floats, b: Floats, found: PairSums) -> tuple[Floats, Floats]:
    """Both with zeros where there are no numbers, which are counted."""
    real = np.isfinite(a)
    if not real.all():
        found.ignored += int(a.size - np.count_nonzero(real))
        a, b = np.where(real, a, 0.0), np.where(real, b, 0.0)
    wrong = ~np.isfinite(b)
    if wrong.any():
        found.nonfinite += int(np.count_nonzero(wrong))
        b = np.where(wrong, 0.0, b)
    return a, b


def _of_axis(each: Floats, shape: Sequence[int], axis: int) -> Sums:
    """Sums of the rows that belong to each channel of an axis before the last."""
    others = tuple(i for i in range(len(shape)) if i != axis)
    signal, noise, peak, worst = each.reshape(4, *shape)
    return Sums(signal.sum(others), noise.sum(others)[None], peak.max(others), worst.max(others))


def divergence_of(ref: Floats, got: Floats) -> Floats:
    """Kullback-Leibler divergence in nats of each row's distribution from the first's.

    A row is a distribution if it is one already, else its softmax is.
    """
    if _are_shares(ref) or _are_shares(got):
        p, q = (rows if _are_shares(rows) else _softmax(rows) for rows in (ref, got))
        ratio = np.log(np.maximum(p, 1e-12)) - np.log(np.maximum(q, 1e-12))
        return np.asarray(np.einsum("rc,rc->r", p, ratio))
    # sum of p (log p - log q), with logarithms of the two sums alone
    a, b = (rows - rows.max(1, keepdims=True) for rows in (ref, got))
    share = np.exp(a)
    total, other = share.sum(1), np.exp(b).sum(1)
    a -= b
    return np.asarray(np.einsum("rc,rc->r", share, a) / total - np.log(total) + np.log(other))


def _are_shares(rows: Floats) -> bool:
    return bool(rows.min() >= 0.0) and bool(np.allclose(rows.sum(1), 1.0, atol=1e-2))


def _softmax(rows: Floats) -> Floats:
    shifted = np.exp(rows - rows.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
