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

__all__ = ["DAMPING", "Factored", "GptqResult", "factored", "gptq", "output_error", "triangular"]

Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean second moment added to every one."""

_CHUNK = 64
"""Columns on which the effect of all before is applied by one matrix product."""

_STEP = 16
"""The same inside such a run of columns."""


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


@dataclass(frozen=True)
class Factored:
    """Second moments as GPTQ reads them: the same for all matrices that multiply one tensor.

    Attributes:
        order: of the columns, the first to round first.
        ratio: ``R_ij / R_jj`` of the moments in this order.
        diagonal: ``R_jj ** 2``.
        damping: share of the mean second moment that was added.
        mean: second moment.
    """

    order: npt.NDArray[np.intp]
    ratio: Array
    diagonal: Array
    damping: float
    mean: float


def factored(moments: Array, damping: float = DAMPING, *, act_order: bool = True) -> Factored:
    """What `gptq` needs of finite second moments; see there."""
    variance = np.diagonal(moments)
    order = np.argsort(-variance, kind="stable") if act_order else np.arange(len(variance))
    ratio, used = triangular(moments[np.ix_(order, order)], damping)
    diagonal = np.diagonal(ratio).copy()
    ratio /= diagonal
    return Factored(order, ratio, diagonal**2, used, max(float(variance.mean()), 1e-30))


def gptq(
    matrix: npt.NDArray[np.float32],
    moments: Array,
    spec: BlockSpec,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    start: BlockWeight | None = None,
    ready: Factored | None = None,
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
        ready: the moments factored with this damping and order, where another matrix needed them too.
    """
    if not np.isfinite(moments).all():
        nearest = start or fit_blocks(matrix, spec)
        return GptqResult(
            nearest, 0.0, np.nan, np.nan, "its inputs hold NaN or infinity: rounded to nearest"
        )
    variance = np.diagonal(moments)
    importance = variance + damping * max(float(variance.mean()), 1e-30)
    grid = start or fit_blocks(matrix, spec, importance.astype(np.float32), SHRINKS)
    if ready is None:
        ready = factored(moments, damping, act_order=act_order)
    order = ready.order
    block = order // spec.block
    scale = grid.scale.astype(np.float64).T[block]
    zero = spec.middle if grid.zero is None else grid.zero.astype(np.float64).T[block]
    weights = np.ascontiguousarray(matrix.T[order], np.float64)
    integers, noise = _round_columns(weights, ready, scale, zero, spec)
    back = np.empty_like(integers)
    back[order] = integers
    found = np.full_like(grid.integers, spec.middle if grid.zero is None else 0)
    flat = found.reshape(len(matrix), -1)
    flat[:, : matrix.shape[1]] = back.T
    made = BlockWeight(spec, grid.width, found, grid.scale, grid.zero)
    signal = _energy(matrix, moments)
    error = noise / max(signal, 1e-30)
    nearest_error = _energy(grid.values() - matrix, moments) / max(signal, 1e-30)
    notes = []
    if ready.damping > damping:
        notes.append(
            f"damping raised from {damping:g} to {ready.damping:g}: too few or too similar inputs"
        )
    dead = int((variance <= 0).sum())
    if dead:
        notes.append(f"{dead} inputs are always zero")
    if not error <= nearest_error:
        notes.append("rounding to nearest errs less: kept")
        made, error = grid, nearest_error
    return GptqResult(made, ready.damping, error, nearest_error, "; ".join(notes))


def _energy(matrix: npt.NDArray[np.float32], moments: Array) -> float:
    """Of the output of ``matrix``; exact to a millionth where rows do not cancel in the moments.

    Neither weights nor their error by rounding to nearest do, so that products in float32, twice as fast, are
    near enough. What is rounded to cancel, as GPTQ's error is, has to be measured in float64.
    """
    product = matrix @ moments.astype(np.float32)
    return max(float(np.einsum("oi,oi->o", product, matrix).sum(dtype=np.float64)), 0.0)


def triangular(moments: Array, damping: float) -> tuple[Array, float]:
    """Upper triangular R with ``R R^T`` the damped moments, and the damping that this took."""
    mean = max(float(np.diagonal(moments).mean()), 1e-30)
    share = damping
    damped = moments[::-1, ::-1].copy()
    plain = np.diagonal(damped).copy()
    while True:
        np.fill_diagonal(damped, plain + share * mean)
        try:
            turned = np.linalg.cholesky(damped)
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
    weights: Array, ready: Factored, scale: Array, zero: Array | int, spec: BlockSpec
) -> tuple[Array, float]:
    """Integers (in, out) for ``weights`` (in, out), row after row, and the energy of the output's error.

    With e the error of a column of ``weights``, ``e^T R R^T e`` is the sum of the squares of
    ``R_jj (e_j + sum_{i<j} R_ij / R_jj e_i)``: what is left between each target and its integer. The
    damping's share is taken off again.
    """
    ratio, count = ready.ratio, len(weights)
    integers = np.empty_like(weights)
    error = np.empty_like(weights)
    inverse = 1.0 / scale
    offset = np.broadcast_to(np.asarray(zero, np.float64), weights.shape)
    noise = 0.0
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        target = weights[begin:end].copy()
        if begin:
            target += ratio[:begin, begin:end].T @ error[:begin]
        for first in range(begin, end, _STEP):
            last = min(first + _STEP, end)
            for j in range(first, last):
                if j > first:
                    target[j - begin] += ratio[first:j, j] @ error[first:j]
                chosen = np.rint(target[j - begin] * inverse[j] + offset[j])
                np.minimum(np.maximum(chosen, spec.low, out=chosen), spec.high, out=chosen)
                integers[j] = chosen
                value = (chosen - offset[j]) * scale[j]
                np.subtract(weights[j], value, out=error[j])
                value -= target[j - begin]
                noise += float(ready.diagonal[j] * (value @ value))
            if last < end:
                behind = slice(last - begin, end - begin)
                target[behind] += ratio[first:last, last:end].T @ error[first:last]
    added = ready.damping * ready.mean * float(np.einsum("io,io->", error, error))
    return integers, max(noise - added, 0.0)
