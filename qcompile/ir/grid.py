"""Finds the integers behind float numbers that were rounded to a grid and written as floats again.

A simulated quantization (``fake quant``) leaves numbers ``scale * q`` with few integers ``q``. Where an
exporter folds it into a constant, the scale is lost from the graph but not from the numbers: every
channel's values are integer multiples of one number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["find_grid"]

LEVELS = 127
"""Largest integer: of 8 bits."""

TOLERANCE = 1e-3
"""Distance from an integer, in steps. Float32 arithmetic of a fake quant leaves 1e-4 at most; of any
numbers one in 500 comes as near by chance, for one of 127 scales."""

PROBED = 24
"""Values of each channel that a scale must fit before all of them are looked at."""

EVIDENCE = 16
"""Values beside the largest of each channel that must lie on the grid: fewer prove nothing."""

Array = npt.NDArray[np.float64]


def find_grid(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
    """Integers of at most 127 and the scale of each channel along ``axis``, or None off any grid.

    The coarsest grid that fits is taken; finer ones stand for the same numbers.

    Examples:
        >>> w = np.arange(-20, 20, dtype=np.float32).reshape(2, 20) * np.float32(0.013)
        >>> q, scale = find_grid(w, 0)
        >>> bool((q == np.arange(-20, 20).reshape(2, 20)).all()), [round(float(s), 6) for s in scale]
        (True, [0.013, 0.013])
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    peaks = np.abs(rows).max(axis=1, initial=0.0)
    used = np.flatnonzero(peaks > 0)
    if not np.isfinite(rows).all() or np.count_nonzero(rows) - used.size < EVIDENCE:
        return None
    unit = rows[used] / peaks[used, None]
    probes = _probes(unit)
    top = np.zeros(used.size, np.int64)
    for most in range(1, LEVELS + 1):
        open_ = np.flatnonzero(top == 0)
        if not open_.size:
            break
        near = open_[_fits(probes[open_] * most)]
        top[near[_fits(unit[near] * most)]] = most
    if not top.all():
        return None
    integers = np.zeros(rows.shape)
    integers[used] = np.rint(unit * top[:, None])
    energy = np.square(integers).sum(axis=1)
    scale = np.ones(len(rows))
    # least squares, since the largest value is rounded like any other
    scale[used] = (rows[used] * integers[used]).sum(axis=1) / energy[used]
    shape = (weight.shape[axis], *np.delete(weight.shape, axis))
    values = np.moveaxis(integers.reshape(shape), 0, axis).astype(np.int32)
    return np.ascontiguousarray(values), scale.astype(np.float32)


def _fits(multiples: Array) -> npt.NDArray[np.bool_]:
    off = np.abs(multiples - np.rint(multiples)).max(axis=1, initial=0.0)
    return np.asarray(off <= TOLERANCE)


def _probes(unit: Array) -> Array:
    """The smallest values of each channel that are not zero and some between: they tell grids apart."""
    order = np.argsort(np.where(unit == 0, np.inf, np.abs(unit)), axis=1)
    columns = np.linspace(0, unit.shape[1] - 1, min(PROBED, unit.shape[1])).astype(np.int64)
    first = np.arange(min(PROBED // 2, unit.shape[1]))
    picked = order[:, np.unique(np.concatenate([first, columns]))]
    return np.asarray(np.take_along_axis(unit, picked, axis=1))
