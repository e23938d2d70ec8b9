"""Round each block to the nearest integers, after a search for the range that loses least.

The range is shrunk in steps and the best kept. With the mean squares of the inputs as importance, the loss
is the error of the layer's output for uncorrelated inputs (the "importance matrix" of llama.cpp's k-quants),
and scales are refitted by least squares too.

Without data nothing says that a large weight may be cut off, and the least squared error cuts off too
many, so fourth powers are summed then. And a scale that errs least makes weights smaller on the whole, in
every layer; it is set so that a block's projection on its real weights is these. Squares, the full range,
fourth powers, the same with such scales: SmolLM2-135M in blocks of 128, perplexity (float 42.8), 3 bits 251,
178, 122, 119, 4 bits 62.8, 52.4, 57.1, 56.6; 4 bits in 64s, SQNR in dB of Whisper's decoder 17.2, 20.6, 17.5,
20.0, its encoder 14.9, 15.1, 14.6, 15.1, MiniLM 11.3, 10.9, 11.4, 11.3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qcompile.ir.blocks import BlockSpec, BlockWeight, split_blocks

__all__ = ["fit_blocks", "grid_of", "round_to"]

Floats = npt.NDArray[np.float32]
Start = Callable[[float], tuple[Floats, Floats]]
"""Share of the full range -> scale and zero point."""

SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.68)
"""Shares of the full range that are tried; at 2 and 3 bits the optimum lies far in."""

FINE = 8
"""Bits from which, with nothing known of the inputs, every block of an embedding keeps the full range."""

GAINS = (0.8, 1.25)
"""Most that a scale is changed for the sake of a block's gain."""

_ROWS = 1 << 18
"""Elements worked on at once: they stay in the CPU's cache."""


def fit_blocks(
    matrix: Floats,
    spec: BlockSpec,
    importance: npt.NDArray[np.floating] | None = None,
    shrinks: tuple[float, ...] = SHRINKS,
) -> BlockWeight:
    """The matrix (out, in) in integers.

    Args:
        matrix: real weights.
        spec: the grid.
        importance: (in,), weighs the squared errors; None weighs all alike.
        shrinks: shares of the range to try; of fine grids the first alone, where there is no importance.
    """
    if importance is None and spec.bits >= FINE:
        shrinks = shrinks[:1]
    blocks = split_blocks(matrix, spec.block)
    weigh = None
    if importance is not None:
        weigh = split_blocks(np.asarray(importance, np.float32)[None], spec.block)
    out, count, block = blocks.shape
    integers = np.empty((out, count, block), np.uint8)
    scale = np.empty((out, count), np.float32)
    zero = np.empty((out, count), np.float32)
    step = max(1, _ROWS // (count * block))
    for start in range(0, out, step):
        part = np.asarray(blocks[start : start + step], np.float32)
        s, z = grid_of(part, spec, weigh, shrinks, peaked=weigh is None)
        whole = round_to(part, s, z, spec)
        integers[start : start + step] = whole
        if weigh is None:
            s = _whole_gain(part, whole - z[..., None], s)
        scale[start : start + step], zero[start : start + step] = s, z
    stored = None if spec.symmetric else zero.astype(np.uint8)
    return BlockWeight(spec, matrix.shape[1], integers, scale, stored)


def _whole_gain(part: Floats, moved: Floats, scale: Floats) -> Floats:
    """Scales with which the projection of the rounded block on the real one is the real one."""
    real, both = (
        np.einsum("...i,...i->...", part, other) for other in (part, moved * scale[..., None])
    )
    gain = np.where(both > 0, real / np.maximum(both, 1e-30), 1.0)
    return np.asarray(scale * np.clip(gain, *GAINS), np.float32)


def round_to(part: Floats, scale: Floats, zero: Floats, spec: BlockSpec) -> Floats:
    """Nearest integers, still as floats: blocks (..., block), scale and zero (...)."""
    found = part * (1.0 / scale)[..., None]
    found += zero[..., None]
    np.rint(found, out=found)
    return np.clip(found, spec.low, spec.high, out=found)


def grid_of(
    part: Floats,
    spec: BlockSpec,
    weigh: Floats | None = None,
    shrinks: tuple[float, ...] = SHRINKS,
    *,
    peaked: bool = False,
) -> tuple[Floats, Floats]:
    """Scale and zero point (...) of blocks (..., block) with the least weighted sum of squared errors.

    With ``peaked``, of their fourth powers, so that large ones count more; scales are then not refitted.
    """
    best = np.full(part.shape[:-1], np.inf, np.float32)
    kept_scale, kept_zero = np.ones_like(best), np.zeros_like(best)

    def consider(scale: Floats, zero: Floats) -> Floats:
        scale = _usable(scale)
        moved = round_to(part, scale, zero, spec)
        moved -= zero[..., None]
        error = moved * scale[..., None]
        error -= part
        if peaked:
            error *= error
        loss = (
            np.einsum("...i,...i->...", error, error)
            if weigh is None
            else np.einsum("...i,...i,...i->...", error, error, np.broadcast_to(weigh, part.shape))
        )
        better = loss < best
        best[better] = loss[better]
        kept_scale[better], kept_zero[better] = scale[better], zero[better]
        return moved

    starts = _symmetric(part, spec) if spec.symmetric else _asymmetric(part, spec)
    for share in shrinks:
        scale, zero = starts(share)
        moved = consider(scale, zero)
        if not peaked:
            consider(_refit(part, moved, weigh, scale), zero)
    return kept_scale, kept_zero


def _asymmetric(part: Floats, spec: BlockSpec) -> Start:
    low, high = np.minimum(part.min(-1), 0), np.maximum(part.max(-1), 0)

    def at(share: float) -> tuple[Floats, Floats]:
        scale = _usable((high - low) * np.float32(share / (spec.high - spec.low)))
        zero = np.clip(np.rint(-low * np.float32(share) / scale), spec.low, spec.high)
        return scale, zero

    return at


def _symmetric(part: Floats, spec: BlockSpec) -> Start:
    below, above = spec.middle - spec.low, spec.high - spec.middle
    if spec.positive:
        step = np.maximum(part.max(-1) / np.float32(above), part.min(-1) / np.float32(-below))
    else:
        # The range has one more step below the middle than above: the largest element takes it.
        at = np.abs(part).argmax(-1)
        step = np.take_along_axis(part, at[..., None], -1)[..., 0] / np.float32(-below)
    middle = np.full(step.shape, spec.middle, np.float32)

    def start(share: float) -> tuple[Floats, Floats]:
        return step * np.float32(share), middle

    return start


def _usable(scale: Floats) -> Floats:
    """No scale may be zero, or so small that its inverse is infinite."""
    return np.where(np.abs(scale) < 1e-30, np.float32(1e-30), scale).astype(np.float32)


def _refit(part: Floats, moved: Floats, weigh: Floats | None, scale: Floats) -> Floats:
    """The scale with the least squared error for given integers."""
    if weigh is None:
        above = np.einsum("...i,...i->...", part, moved)
        below = np.einsum("...i,...i->...", moved, moved)
    else:
        full = np.broadcast_to(weigh, part.shape)
        above = np.einsum("...i,...i,...i->...", full, part, moved)
        below = np.einsum("...i,...i,...i->...", full, moved, moved)
    return np.where(below > 0, above / np.maximum(below, 1e-30), scale).astype(np.float32)
