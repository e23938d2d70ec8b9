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

__all__ = ["PairSums", "Rows", "pair_sums", "rows_of"]

AT_ONCE = 1 << 17
"""Elements in float64 that a CPU's second cache holds, with what is made of them."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Rows of two arrays as distributions over the last axis, in the order in which they lie.

    Attributes:
        same: (rows,) whether both have the same largest class.
        kl: (rows,) Kullback-Leibler divergence in nats of the other's distribution from float's. A row is a
            distribution if it is one already, else its softmax is.
        logs: (2, rows) logarithm of the sum of exponentials: less a class's value, what that class would
            surprise each model by, in nats.
    """

    same: npt.NDArray[np.bool_]
    kl: Floats
    logs: Floats

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Behind each other."""
        return cls(
            np.concatenate([part.same for part in parts]),
            np.concatenate([part.kl for part in parts]),
            np.concatenate([part.logs for part in parts], 1),
        )


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
        rows: with classes on the last axis; None where it has one element.
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
    rows: Rows | None = None
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
    classes: list[Rows] = []
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
            classes.append(_beside(a, b))
    if classes:
        found.rows = Rows.joined(classes)
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


def rows_of(ref: Array, got: Array) -> Rows:
    """The rows of two arrays of one shape, in float64."""
    return Rows.joined([_beside(a, b) for a, b in _runs(ref, got)])


def _beside(ref: Floats, got: Floats) -> Rows:
    tops = [rows.argmax(1)[:, None] for rows in (ref, got)]
    most = [np.take_along_axis(rows, top, 1) for rows, top in zip((ref, got), tops, strict=True)]
    a, b = ref - most[0], got - most[1]
    share = np.exp(a)
    total, other = share.sum(1), np.exp(b).sum(1)
    logs = np.log(np.stack([total, other]))
    if _are_shares(ref) or _are_shares(got):
        p = ref if _are_shares(ref) else share / total[:, None]
        q = got if _are_shares(got) else np.exp(b) / other[:, None]
        ratio = np.log(np.maximum(p, 1e-12)) - np.log(np.maximum(q, 1e-12))
        kl = np.einsum("rc,rc->r", p, ratio)
    else:
        # sum of p (log p - log q), with logarithms of the two sums alone
        a -= b
        kl = np.einsum("rc,rc->r", share, a) / total - logs[0] + logs[1]
    return Rows((tops[0] == tops[1])[:, 0], kl, logs + np.stack(most)[..., 0])


def _are_shares(rows: Floats) -> bool:
    return bool(rows.min() >= 0.0) and bool(np.allclose(rows.sum(1), 1.0, atol=1e-2))
