"""HQQ: zero points that make the largest errors few, without any data.

Badri, Shaji: Half-Quadratic Quantization of Large Machine Learning Models (2023). Minimises
``|W - s (q - z)|_p^p`` with p < 1 over the zero points, by half-quadratic splitting: an auxiliary error
``e = shrink(W - s (q - z))`` and, in turn, ``z = mean(q - (W - e) / s)`` for each block. The scales stay.

The paper's zero points are real numbers; those that the fast kernels read are integers. On the full
range, where nothing is clipped, a rounded zero point is nearly always the one it started from; so the
iteration starts from narrower ranges too, and a block keeps what errs least in the same norm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.nearest_blocks import SHRINKS, grid_of, round_to
from qcompile.ir.blocks import BlockSpec, BlockWeight, split_blocks

__all__ = ["hqq"]

Floats = npt.NDArray[np.float32]

POWER, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20
"""The paper's settings."""

_ELEMENTS = 1 << 18


def hqq(matrix: Floats, spec: BlockSpec) -> BlockWeight:
    """The matrix (out, in) in integers; a symmetric grid has no zero point to choose and is searched."""
    blocks = split_blocks(matrix, spec.block)
    out, count, block = blocks.shape
    integers = np.empty(blocks.shape, np.uint8)
    scale = np.empty((out, count), np.float32)
    zero = np.empty((out, count), np.float32)
    rows = max(1, _ELEMENTS // (count * block))
    for start in range(0, out, rows):
        part = np.asarray(blocks[start : start + rows], np.float32)
        s, z = _least(part, spec)
        integers[start : start + rows] = round_to(part, s, z, spec)
        scale[start : start + rows], zero[start : start + rows] = s, z
    stored = None if spec.symmetric else zero.astype(np.uint8)
    return BlockWeight(spec, matrix.shape[1], integers, scale, stored)


def _least(part: Floats, spec: BlockSpec) -> tuple[Floats, Floats]:
    """Scale and zero point of each block with the least error in the p-norm."""
    best = np.full(part.shape[:-1], np.inf, np.float32)
    kept_scale, kept_zero = np.ones_like(best), np.zeros_like(best)
    for share in SHRINKS:
        scale, zero = grid_of(part, spec, None, (share,))
        if not spec.symmetric:
            zero = _better_zero(part, scale, zero, spec)
        loss = _loss(part, scale, zero, spec)
        better = loss < best
        best[better] = loss[better]
        kept_scale[better], kept_zero[better] = scale[better], zero[better]
    return kept_scale, kept_zero


def _better_zero(part: Floats, scale: Floats, zero: Floats, spec: BlockSpec) -> Floats:
    """Integer zero points with the least error in the p-norm that the iteration came by."""
    best, kept = _loss(part, scale, zero, spec), zero
    real, beta = zero, BETA
    # The iteration's thresholds are made for weights of about this size.
    unit = np.maximum(np.abs(part).mean(), 1e-30)
    for _ in range(STEPS):
        q = round_to(part, scale, real, spec)
        error = (part - (q - real[..., None]) * scale[..., None]) / unit
        error = _shrink(error, beta) * unit
        real = (q - (part - error) / scale[..., None]).mean(-1)
        rounded = np.clip(np.rint(real), spec.low, spec.high)
        loss = _loss(part, scale, rounded, spec)
        better = loss < best
        if not better.any() and beta > BETA * GROWTH**3:
            break
        best, kept = np.where(better, loss, best), np.where(better, rounded, kept)
        beta *= GROWTH
    return np.asarray(kept, np.float32)


def _shrink(error: Floats, beta: float) -> Floats:
    """The paper's generalised soft threshold for p < 1."""
    size = np.abs(error)
    lowered = size - np.power(np.maximum(size, 1e-8), POWER - 1) / beta
    return np.asarray(np.sign(error) * np.maximum(lowered, 0), np.float32)


def _loss(part: Floats, scale: Floats, zero: Floats, spec: BlockSpec) -> Floats:
    error = part - (round_to(part, scale, zero, spec) - zero[..., None]) * scale[..., None]
    return np.asarray(np.power(np.abs(error), POWER).sum(-1), np.float32)
