"""Integer weights between the passes that choose them and the pass that writes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.ir.affine import QParams

__all__ = ["IntegerWeight"]


@dataclass(frozen=True)
class IntegerWeight:
    """A constant weight as it will stand in the graph.

    Attributes:
        values: integers of the spec's dtype, in the weight's own layout.
        qparams: scale and zero point; their spec holds the axis.
        source: who chose the integers ("round to nearest", "learned rounding", ...).
    """

    values: npt.NDArray[np.generic]
    qparams: QParams
    source: str = "round to nearest"
