"""Channels of an output that differ by orders of magnitude, told apart so that each kind is judged.

A detector may write boxes in pixels and class scores into one tensor: 640 beside 0.9. Over the whole
tensor the boxes are all the signal there is, and 40 dB may hide that every score is wrong. Where the
peaks of channels in float have a gap, each side of it is judged by itself.

What has one unit is never split, whatever its values: all that stays within -1 to 1 (probabilities,
cosines, masks) is small where the samples do not hold it, and hidden channels form no gap. A few small
channels among many (the constant component of a spectrum), or next to nothing, carry no result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ChannelGroup",
    "ChannelSums",
    "Indices",
    "Sums",
    "channel_axes",
    "channels_text",
    "runs",
    "split_channels",
]

GAP = 16.0
"""Peaks this far apart belong to different kinds of channels."""

ONE_UNIT = 1.0
"""Channels that all stay within -1 to 1 are of one kind."""

SILENT = 0.01
"""A peak below this is next to nothing: there is no signal to relate an error to."""

FEW = 0.05
"""Smaller channels that are a lesser share of all than this are not judged by themselves."""

MOST_CHANNELS = 1024
"""A longer axis holds places or classes, not kinds of results."""

NAMED = 4
"""Runs of neighbours that a text names."""

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one output that are judged by themselves.

    Attributes:
        axis: of the channels.
        channels: first and last index of each run of neighbours.
        text: ``channels 4..21``.
        sqnr_db: of these channels over all samples.
        typical_db: the same by the mean amplitude of the noise in one sample instead of its energy, so
            that a single sample in which one detection moved does not decide.
        peak: largest absolute float value.
        max_abs_error: largest difference.
    """

    axis: int
    channels: tuple[tuple[int, int], ...]
    text: str
    sqnr_db: float
    typical_db: float
    peak: float
    max_abs_error: float


def channel_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Axes that may hold channels: the second and the last."""
    if len(shape) < 2:
        return ()
    return tuple(a for a in dict.fromkeys((1, len(shape) - 1)) if 2 <= shape[a] <= MOST_CHANNELS)


def split_channels(peaks: Array) -> list[Indices]:
    """Indices of the channels of each kind, the largest first; one list where all are of one kind.

    Args:
        peaks: largest absolute float value of each channel.

    Examples:
        >>> [list(map(int, g)) for g in split_channels(np.array([640.0, 600.0, 0.9, 1e-5]))]
        [[0, 1], [2, 3]]
    """
    order = np.argsort(-peaks, kind="stable")
    ranked = peaks[order]
    cuts = [
        i + 1
        for i in range(len(ranked) - 1)
        if ranked[i] > ONE_UNIT and ranked[i] > GAP * ranked[i + 1]
    ]
    while cuts and ranked[cuts[-1]] < SILENT:
        cuts.pop()
    edges = [0, *cuts, len(ranked)]
    groups: list[Indices] = []
    for a, b in pairwise(edges):
        if groups and b - a < FEW * len(ranked):
            groups[-1] = np.concatenate([groups[-1], order[a:b]])
        else:
            groups.append(order[a:b])
    return [np.sort(group) for group in groups]


@dataclass(frozen=True)
class Sums:
    """Of each channel along one axis: energies of float and of the difference, largest of both.

    ``noise`` is by sample, (samples, channels); all else over all samples.
    """

    signal: Array
    noise: Array
    peak: Array
    worst: Array

    def with_more(self, other: Sums) -> Sums:
        """Of one sample, of which ``other`` is a further part."""
        whole = self.plus(other)
        return replace(whole, noise=whole.noise.sum(axis=0, keepdims=True))

    def plus(self, other: Sums) -> Sums:
        """Of the samples behind both."""
        return Sums(
            self.signal + other.signal,
            np.concatenate([self.noise, other.noise]),
            np.maximum(self.peak, other.peak),
            np.maximum(self.worst, other.worst),
        )

    def of(self, channels: Indices) -> Sums:
        """Of some channels alone."""
        return Sums(
            self.signal[channels],
            self.noise[:, channels],
            self.peak[channels],
            self.worst[channels],
        )

    def energies(self) -> tuple[float, float]:
        """Of float and of the difference, over all channels and samples."""
        return float(self.signal.sum()), float(self.noise.sum())

    def typical_noise(self) -> float:
        """Energy of the difference as if each sample had the mean amplitude."""
        amplitudes = np.sqrt(self.noise.sum(axis=1))
        return float(len(amplitudes) * amplitudes.mean() ** 2)


@dataclass
class ChannelSums:
    """Accumulates sums by channel along every axis that may hold channels.

    An axis that has another size in another sample holds none.
    """

    axes: dict[int, Sums] | None = None

    def update(self, ref: Array, error: Array) -> None:
        """Take in one sample's float values and what differs from them, both finite."""
        self.take({axis: _sums(ref, error, axis) for axis in channel_axes(ref.shape)})

    def take(self, found: Mapping[int, Sums]) -> None:
        """Take in one sample's sums by axis."""
        if self.axes is not None:
            found = {
                axis: self.axes[axis].plus(now)
                for axis, now in found.items()
                if axis in self.axes and len(self.axes[axis].peak) == len(now.peak)
            }
        self.axes = dict(found)

    def split(self) -> list[tuple[int, Indices, Sums]]:
        """Axis, channels and their sums for each kind; empty where all channels are of one kind.

        Where two axes could be split, the shorter one is.
        """
        for axis, sums in sorted((self.axes or {}).items(), key=lambda item: len(item[1].peak)):
            groups = split_channels(sums.peak)
            if len(groups) > 1:
                return [(axis, channels, sums.of(channels)) for channels in groups]
        return []


def runs(channels: Indices) -> tuple[tuple[int, int], ...]:
    """First and last index of each run of neighbours.

    >>> runs(np.array([0, 1, 2, 5]))
    ((0, 2), (5, 5))
    """
    ends = np.flatnonzero(np.diff(channels) != 1)
    first, last = channels[[0, *(ends + 1)]], channels[[*ends, -1]]
    return tuple((int(a), int(b)) for a, b in zip(first, last, strict=True))


def channels_text(channels: Sequence[tuple[int, int]]) -> str:
    """Runs of neighbours in words.

    >>> channels_text([(0, 2), (5, 5)])
    'channels 0..2, 5'
    """
    named = [str(a) if a == b else f"{a}..{b}" for a, b in channels]
    more = ["..."] if len(named) > NAMED else []
    word = "channel" if len(named) == 1 and ".." not in named[0] else "channels"
    return f"{word} {', '.join(named[:NAMED] + more)}"


def _sums(ref: Array, error: Array, axis: int) -> Sums:
    others = tuple(i for i in range(ref.ndim) if i != axis)
    return Sums(
        np.sum(ref * ref, axis=others),
        np.sum(error * error, axis=others)[None],
        np.max(np.abs(ref), axis=others, initial=0.0),
        np.max(np.abs(error), axis=others, initial=0.0),
    )
