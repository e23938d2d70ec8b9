"""Second moments of what a weight is multiplied with, gathered while data stream by.

A weight's output error at one position is ``e . x`` (e: rounding error of one output channel, x: the
values under the window), so its mean square over the data is ``e (H + mu mu^T) e^T`` with H the
covariance of x and mu its mean. H and mu of a sample of positions are all that learned rounding
(GPTQ, Frantar et al. 2022) and bias correction (Nagel et al. 2019) need to know of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["GramStore", "Window", "block_count", "columns", "split_blocks"]

FloatArray = npt.NDArray[np.float32]
Real = TypeVar("Real", bound=np.floating[Any])


@dataclass(frozen=True)
class Window:
    """How a Conv reads its input, (n, channels, *space).

    Attributes:
        kernel: extent of the window, one number per dimension of space.
        strides: one number per dimension.
        pads: all starts, then all ends, as ONNX writes them.
        dilations: one number per dimension.
        group: how many runs of channels have weights of their own.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    def outputs(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Extent of the output for an input of extent ``space``."""
        rank = len(space)
        return tuple(
            max(
                0,
                (space[i] + self.pads[i] + self.pads[rank + i] - self.reach(i)) // self.strides[i]
                + 1,
            )
            for i in range(rank)
        )

    def reach(self, axis: int) -> int:
        """How many input positions one window spans."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def columns(
    x: npt.NDArray[np.generic],
    window: Window | None,
    positions: int,
    rng: np.random.Generator,
) -> FloatArray:
    """What a weight is multiplied with at a sample of positions: (groups, d, at most ``positions``).

    Args:
        x: (n, channels, *space) for a Conv; (..., d) where ``window`` is None.
        window: of the Conv; None for a product with a matrix, whose groups are 1.
        positions: how many to draw, without repeats and in order.
        rng: draws them.
    """
    if window is None:
        rows = x.reshape(-1, x.shape[-1])
        picked = _draw(rows.shape[0], positions, rng)
        return np.ascontiguousarray(rows[picked].T, np.float32)[None]
    n, channels, *space = x.shape
    out = window.outputs(tuple(space))
    picked = _draw(n * math.prod(out), positions, rng)
    rank = len(space)
    pads = [(window.pads[i], window.pads[rank + i]) for i in range(rank)]
    if any(start or end for start, end in pads):
        x = np.pad(x, [(0, 0), (0, 0), *pads])
    extent = x.shape[2:]
    sample, *place = np.unravel_index(picked, (n, *out))
    # The flat place of each window's first element, and of the others relative to it.
    first = np.zeros(len(picked), np.int64)
    inside = np.zeros(1, np.int64)
    for i in range(rank):
        first = first * extent[i] + place[i] * window.strides[i]
        steps = np.arange(window.kernel[i]) * window.dilations[i]
        inside = (inside[:, None] * extent[i] + steps).reshape(-1)
    flat = x.reshape(n, channels, -1)
    places = inside[:, None] + first
    taken = flat[0][:, places] if n == 1 else flat[sample, :, places].transpose(2, 0, 1)
    d = channels // window.group * len(inside)
    return np.ascontiguousarray(taken, np.float32).reshape(window.group, d, len(picked))


def _draw(total: int, wanted: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    if total <= wanted:
        return np.arange(total)
    # One from each of equal runs: no repeats, spread evenly, and cheaper than a choice among all.
    edges = np.linspace(0, total, wanted + 1)
    low = np.ceil(edges[:-1]).astype(np.int64)
    high = np.maximum(np.ceil(edges[1:]).astype(np.int64), low + 1)
    return np.asarray(rng.integers(low, high), np.int64)


def block_count(channels: int, width: int, limit: int) -> int:
    """Into how many runs of channels a window must be cut so that a run has at most ``limit`` values.

    Args:
        channels: of the input.
        width: values of each channel under the window.
        limit: values of a run; a single channel may exceed it.
    """
    per_run = max(1, limit // width)
    return -(-channels // per_run)


def split_blocks(values: npt.NDArray[Real], channels: int, blocks: int) -> npt.NDArray[Real]:
    """(1, channels * width, ...) as (blocks, d, ...): runs of channels, the last filled with zeros."""
    width = values.shape[1] // channels
    per_run = -(-channels // blocks)
    missing = per_run * blocks - channels
    body = values[0]
    if missing:
        body = np.concatenate([body, np.zeros((missing * width, *body.shape[1:]), body.dtype)])
    return np.asarray(body.reshape(blocks, per_run * width, *body.shape[1:]))


@dataclass
class GramStore:
    """Mean and covariance of columns, streamed; the memory does not grow with the data.

    Attributes:
        second: whether the covariance is wanted; else the mean alone is kept.
        count: columns taken in.
        held: columns kept aside to judge on, each (groups, d, p).
    """

    second: bool = True
    count: int = 0
    held: list[FloatArray] = field(default_factory=list)
    _reference: FloatArray | None = None
    _sum: npt.NDArray[np.float64] | None = None
    _product: npt.NDArray[np.float64] | None = None

    def update(self, x: FloatArray) -> None:
        """Take in columns (groups, d, p)."""
        if not x.shape[2]:
            return
        if self._reference is None or self._sum is None:
            # Differences from a value near the mean: float32 products lose nothing to large means.
            self._reference = x.mean(axis=2, dtype=np.float64).astype(np.float32)
            self._sum = np.zeros(x.shape[:2])
            if self.second:
                self._product = np.zeros((x.shape[0], x.shape[1], x.shape[1]))
        shifted = x - self._reference[:, :, None]
        self._sum += shifted.sum(axis=2, dtype=np.float64)
        if self._product is not None:
            self._product += np.matmul(shifted, shifted.transpose(0, 2, 1))
        self.count += x.shape[2]

    def mean(self) -> npt.NDArray[np.float64]:
        """(groups, d)."""
        if self._reference is None or self._sum is None:
            raise ValueError("no columns were taken in")
        return np.asarray(self._reference + self._sum / self.count)

    def covariance(self) -> npt.NDArray[np.float64]:
        """(groups, d, d), symmetric."""
        if self._product is None or self._sum is None:
            raise ValueError("no columns were taken in, or the mean alone was asked for")
        offset = self._sum / self.count
        return np.asarray(self._product / self.count - offset[:, :, None] * offset[:, None, :])

    def held_columns(self) -> FloatArray:
        """(groups, d, p) of all columns kept aside."""
        return np.concatenate(self.held, axis=2)
