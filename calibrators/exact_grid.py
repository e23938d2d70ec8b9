"""Weights that already lie on a grid: found, and kept to the last bit, instead of rounded a second time.

A checkpoint that was quantized before (GPTQ, AWQ, llama.cpp's Q4_0) and exported in floats holds
``s (q - z)`` with whole q and z in each block. A search over ranges misses that grid wherever a block does
not reach both of its ends. Here the largest element of a block is taken for 1, 2, 3, ... steps; on a grid
one of these makes all others whole numbers too. That happens to no real weights by chance, so a matrix
whose blocks all do it was made that way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.ir.blocks import BlockSpec, BlockWeight, split_blocks

__all__ = ["exact_blocks", "lies_on_grid"]

Floats = npt.NDArray[np.float32]

TOLERANCE = 2.0**-7
"""Share of an element that it may be off its step: products were rounded to bfloat16 at worst."""

_ELEMENTS = 1 << 20


def exact_blocks(matrix: Floats, spec: BlockSpec) -> BlockWeight | None:
    """The matrix (out, in) on the grid that it lies on, None where it lies on none that ``spec`` has."""
    blocks = split_blocks(matrix, spec.block)
    out, count, block = blocks.shape
    integers = np.empty(blocks.shape, np.uint8)
    scale = np.empty((out, count), np.float32)
    zero = np.empty((out, count), np.uint8)
    rows = max(1, _ELEMENTS // (count * block))
    for start in range(0, out, rows):
        found = _steps(np.asarray(blocks[start : start + rows], np.float32), spec)
        if found is None:
            return None
        part = slice(start, start + rows)
        scale[part], zero[part], integers[part] = found
    return BlockWeight(spec, matrix.shape[1], integers, scale, None if spec.symmetric else zero)


def lies_on_grid(rows: Floats, spec: BlockSpec) -> bool:
    """Whether every block of these rows lies on a grid that ``spec`` has; a few rows tell for all."""
    return _steps(np.asarray(split_blocks(rows, spec.block), np.float32), spec) is not None


def _steps(
    blocks: Floats, spec: BlockSpec
) -> tuple[Floats, npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None:
    """Scale and zero point (...), integers (..., block) of blocks that all lie on grids."""
    if spec.bits == 8:  # so fine that real weights come near it
        return None
    at = np.abs(blocks).argmax(-1)
    top = np.take_along_axis(blocks, at[..., None], -1)[..., 0]
    if not np.isfinite(top).all():
        return None
    scale = np.ones_like(top)
    whole = np.zeros_like(blocks)
    missing = top != 0
    for steps in range(1, 1 << spec.bits):
        some = blocks[missing]
        if not some.size:
            break
        step = np.maximum(np.abs(top[missing]) / np.float32(steps), np.float32(1e-30))
        if spec.symmetric and not spec.positive and steps == spec.middle - spec.low:
            # the side that has one step more takes the largest element
            step = np.copysign(step, -top[missing])
        near = np.rint(some / step[:, None])
        fits = (np.abs(some - near * step[:, None]) <= TOLERANCE * np.abs(some)).all(-1)
        fits &= _within(near, spec)
        if not fits.any():
            continue
        places = tuple(axis[fits] for axis in np.nonzero(missing))
        whole[places] = near[fits]
        scale[places] = _least_squares(some[fits], near[fits])
        missing[places] = False
    if missing.any():
        return None
    zero = np.full(top.shape, float(spec.middle))
    if not spec.symmetric:
        zero = np.clip(-whole.min(-1), spec.low, spec.high)
    return scale, zero.astype(np.uint8), (whole + zero[..., None]).astype(np.uint8)


def _within(near: Floats, spec: BlockSpec) -> npt.NDArray[np.bool_]:
    """Whether some zero point puts these whole numbers (blocks, block) into the range."""
    low, high = near.min(-1), near.max(-1)
    if spec.symmetric:
        inside = (low >= spec.low - spec.middle) & (high <= spec.high - spec.middle)
    else:
        inside = np.maximum(high, 0) - np.minimum(low, 0) <= spec.high - spec.low
    return np.asarray(inside)


def _least_squares(values: Floats, whole: Floats) -> Floats:
    """(blocks,): the step that fits best; in float64, so that a step that fits all is found exactly."""
    real, near = values.astype(np.float64), whole.astype(np.float64)
    found = np.einsum("bi,bi->b", real, near) / np.einsum("bi,bi->b", near, near)
    return np.asarray(found, np.float32)
