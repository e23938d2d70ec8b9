"""NVFP4: numbers of 4 bits (E2M1) in blocks of 16, a scale of 8 bits (E4M3) a block, one of 32 for all.

    w = q * s * g,    q in {0, 0.5, 1, 1.5, 2, 3, 4, 6} with a sign

The largest number of a block would be 6 s g. Where that rounds the others badly, a block may have
another scale: of a few, the one with the least square error is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "LARGEST", "LARGEST_SCALE", "Float4", "global_scale", "round_float4"]

BLOCK = 16
"""Numbers that share a scale."""

LARGEST = 6.0
"""Largest E2M1."""

LARGEST_SCALE = 448.0
"""Largest E4M3."""

_STRETCHES = (1.0, 1.5, 1.25, 0.9)
"""Scales that are tried, in that of the block's largest number; with 1.5 it becomes 4."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Float4:
    """A matrix in NVFP4.

    Attributes:
        values: (rows, K) of float4_e2m1fn.
        scales: (rows, K / 16) of float8_e4m3fn.
        whole: what all scales are multiplied by.
    """

    values: npt.NDArray[np.generic]
    scales: npt.NDArray[np.generic]
    whole: float

    def floats(self) -> Floats:
        """The numbers that it stands for."""
        steps = self.scales.astype(np.float32) * self.whole
        return np.asarray(self.values.astype(np.float32) * np.repeat(steps, BLOCK, axis=-1))


def global_scale(peak: float) -> float:
    """The scale with which a block that holds ``peak`` has the largest scale that E4M3 has."""
    whole = peak / (LARGEST * LARGEST_SCALE)
    return float(np.float32(whole)) if whole > 1e-37 else 1.0


def round_float4(matrix: Floats) -> Float4:
    """The nearest NVFP4 of ``matrix`` (rows, K); K is a multiple of the block."""
    rows, width = matrix.shape
    whole = global_scale(float(np.max(np.abs(matrix), initial=0.0)))
    blocks = matrix.reshape(rows, width // BLOCK, BLOCK).astype(np.float32)
    peaks = np.abs(blocks).max(axis=-1)
    best = np.full(peaks.shape, np.inf, np.float32)
    values = np.zeros(blocks.shape, np.float32)
    scales = np.zeros(peaks.shape, np.float32)
    for stretch in _STRETCHES:
        wanted = np.minimum(stretch * peaks / (LARGEST * whole), LARGEST_SCALE)
        scale = wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        step = (scale * whole)[..., None]
        ratio = np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)
        near = np.clip(ratio, -LARGEST, LARGEST).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        error = np.square(near * step - blocks).sum(axis=-1)
        better = error < best
        best = np.where(better, error, best)
        values = np.where(better[..., None], near, values)
        scales = np.where(better, scale, scales)
    return Float4(
        values.reshape(rows, width).astype(ml_dtypes.float4_e2m1fn),
        scales.astype(ml_dtypes.float8_e4m3fn),
        whole,
    )
