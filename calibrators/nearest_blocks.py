"""Round each block to the nearest integers, after a search for the range that loses least.

The range is shrunk in steps, the scale refitted by least squares, and the best kept. With the mean
squares of the inputs as importance, the loss is the error of the layer's output for uncorrelated
inputs (the "importance matrix" of llama.cpp's k-quants).
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
        shrinks: shares of the range to try.
    """
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
        s, z = grid_of(part, spec, weigh, shrinks)
        integers[start : start + step] = round_to(part, s, z, spec)
        scale[start : start + step], zero[start : start + step] = s, z
    stored = None if spec.symmetric else zero.astype(np.uint8)
    return BlockWeight(spec, matrix.shape[1], integers, scale, stored)


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
) -> tuple[Floats, Floats]:
    """Scale and zero point (...) of blocks (..., block) with the least weighted squared error."""
    best = np.full(part.shape[:-1], np.inf, np.float32)
    kept_scale, kept_zero = np.ones_like(best), np.zeros_like(best)

    def consider(scale: Floats, zero: Floats) -> Floats:
        scale = _usable(scale)
        moved = round_to(part, scale, zero, spec)
        moved -= zero[..., None]
        error = moved * scale[..., None]
        error -= part
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
