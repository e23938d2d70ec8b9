"""GPTQ: round one input column after another, the later ones make up for the error of the earlier.

Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, Accurate Post-Training Quantization for Generative
Pre-trained Transformers (2022). With H the second moments of a layer's inputs and ``H = R R^T``, R upper
triangular, column j is rounded at ``w_j + sum_{i<j} (R_ij / R_jj) (w_i - q_i)``: the same integers as the
paper's updates with the Cholesky factor of the inverse (whose inverse R is), without inverting H.

Columns that vary most go first ("act-order"); the scales of the blocks are fixed before, because the
kernels want blocks of neighbouring columns whatever the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.nearest_blocks import SHRINKS, fit_blocks
from qcompile.ir.blocks import BlockSpec, BlockWeight

__all__ = ["DAMPING", "GptqResult", "gptq", "output_error", "triangular"]

Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean second moment added to every one."""

_CHUNK = 64
"""Columns whose effect on the rest is applied by one matrix product."""


@dataclass(frozen=True)
class GptqResult:
    """Integers, and what had to be done.

    Attributes:
        weight: the matrix.
        damping: share of the mean second moment that was added.
        error: mean square of the layer's output error over mean square of its output.
        nearest_error: the same for integers that are rounded to nearest.
        note: fallbacks in words, "" if there was none.
    """

    weight: BlockWeight
    damping: float
    error: float
    nearest_error: float
    note: str


def gptq(
    matrix: npt.NDArray[np.float32],
    moments: Array,
    spec: BlockSpec,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    start: BlockWeight | None = None,
) -> GptqResult:
    """The matrix (out, in) in integers that make the layer's output err little.

    Args:
        matrix: real weights.
        moments: (in, in), mean of ``x x^T`` over the layer's inputs.
        spec: the grid.
        damping: least share of the mean second moment to add; ten times more where the moments are
            not positive definite with it, and the result says so.
        act_order: columns with the largest second moments first, else in their own order.
        start: scales and zero points to use; by default those with the least error of nearest
            integers, weighed by the second moments.
    """
    if not np.isfinite(moments).all():
        nearest = start or fit_blocks(matrix, spec)
        return GptqResult(
            nearest, 0.0, np.nan, np.nan, "its inputs hold NaN or infinity: rounded to nearest"
        )
    variance = np.diagonal(moments)
    importance = variance + damping * max(float(variance.mean()), 1e-30)
    grid = start or fit_blocks(matrix, spec, importance.astype(np.float32), SHRINKS)
    order = np.argsort(-variance, kind="stable") if act_order else np.arange(len(variance))
    factor, used = triangular(moments[np.ix_(order, order)], damping)
    block = order // spec.block
    scale = grid.scale.astype(np.float64).T[block]
    zero = spec.middle if grid.zero is None else grid.zero.astype(np.float64).T[block]
    weights = np.ascontiguousarray(matrix.T[order], np.float64)
    integers = _round_columns(weights, factor, scale, zero, spec)
    back = np.empty_like(integers)
    back[order] = integers
    found = np.full_like(grid.integers, spec.middle if grid.zero is None else 0)
    flat = found.reshape(len(matrix), -1)
    flat[:, : matrix.shape[1]] = back.T
    made = BlockWeight(spec, grid.width, found, grid.scale, grid.zero)
    error, nearest_error = (output_error(matrix, w, moments) for w in (made, grid))
    notes = []
    if used > damping:
        notes.append(f"damping raised from {damping:g} to {used:g}: too few or too similar inputs")
    dead = int((variance <= 0).sum())
    if dead:
        notes.append(f"{dead} inputs are always zero")
    if not error <= nearest_error:
        notes.append("rounding to nearest errs less: kept")
        made, error = grid, nearest_error
    return GptqResult(made, used, error, nearest_error, "; ".join(notes))


def triangular(moments: Array, damping: float) -> tuple[Array, float]:
    """Upper triangular R with ``R R^T`` the damped moments, and the damping that this took."""
    mean = max(float(np.diagonal(moments).mean()), 1e-30)
    share = damping
    while True:
        damped = moments + share * mean * np.eye(len(moments))
        try:
            turned = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            share = max(share * 10.0, 1e-6)
            continue
        return np.ascontiguousarray(turned[::-1, ::-1]), share


def output_error(matrix: npt.NDArray[np.float32], weight: BlockWeight, moments: Array) -> float:
    """Energy of the output error over energy of the output, for inputs with these second moments."""
    real = matrix.astype(np.float64)
    wrong = weight.values() - real
    noise = float(np.einsum("oi,oi->", wrong @ moments, wrong))
    signal = float(np.einsum("oi,oi->", real @ moments, real))
    return max(noise, 0.0) / max(signal, 1e-30)


def _round_columns(
    weights: Array, factor: Array, scale: Array, zero: Array | int, spec: BlockSpec
) -> Array:
    """Integers (in, out) for ``weights`` (in, out), row after row."""
    ratio = factor / np.diagonal(factor)  # R_ij / R_jj
    count = len(weights)
    integers = np.empty_like(weights)
    error = np.empty_like(weights)
    carried = np.zeros_like(weights)
    inverse = 1.0 / scale
    offset = np.broadcast_to(np.asarray(zero, np.float64), weights.shape)
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        for j in range(begin, end):
            target = weights[j] + carried[j]
            if j > begin:
                target += ratio[begin:j, j] @ error[begin:j]
            chosen = np.clip(np.rint(target * inverse[j] + offset[j]), spec.low, spec.high)
            integers[j] = chosen
            error[j] = weights[j] - (chosen - offset[j]) * scale[j]
        if end < count:
            carried[end:] += ratio[begin:end, end:].T @ error[begin:end]
    return integers
