"""AWQ: give the columns that see large inputs more of the grid.

Lin, Tang, Tang, Yang, Chen, Wang, Gan, Han: AWQ, Activation-aware Weight Quantization (2023). Columns are
multiplied by ``s = r^a`` (r: root mean square of each input, normalised), the inputs divided by it; the
exponent with the least error of the layers' outputs is taken, 0 (nothing changes) among those tried. The
error here is exact for the samples: it is computed from the second moments of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.calibrators.gptq import output_error
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec

__all__ = ["Balance", "balance"]

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

EXPONENTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)


@dataclass(frozen=True)
class Balance:
    """What columns are multiplied with.

    Attributes:
        scale: float32, (in,); ones where nothing was gained.
        exponent: the one taken.
        error: mean of the layers' relative output errors with it, rounded to nearest.
        plain_error: the same without.
    """

    scale: Floats
    exponent: float
    error: float
    plain_error: float


def balance(matrices: Sequence[Floats], specs: Sequence[BlockSpec], moments: Array) -> Balance:
    """One scale for all matrices (out, in) that read the same inputs with these second moments."""
    size = np.sqrt(np.maximum(np.diagonal(moments), 0.0))
    size = np.maximum(size, 1e-4 * max(float(size.max()), 1e-30))
    found: list[tuple[float, float, Floats]] = []
    for exponent in EXPONENTS:
        wanted = size**exponent
        scale = (wanted / np.sqrt(wanted.max() * wanted.min())).astype(np.float32)
        inside = moments / np.outer(scale, scale)
        importance = np.diagonal(inside).astype(np.float32)
        errors = []
        for matrix, spec in zip(matrices, specs, strict=True):
            wide = matrix * scale
            errors.append(output_error(wide, fit_blocks(wide, spec, importance), inside))
        found.append((float(np.mean(errors)), exponent, scale))
    error, exponent, taken = min(found, key=lambda f: f[0])
    return Balance(taken, exponent, error, found[0][0])
