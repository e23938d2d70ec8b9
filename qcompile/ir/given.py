"""Scales that a model brings along from quantization-aware training: givens, not choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcompile.ir.affine import QParams
from qcompile.ir.weights import IntegerWeight

__all__ = ["NOTHING_GIVEN", "BroughtWeight", "Given"]


@dataclass(frozen=True)
class BroughtWeight:
    """A constant as the model brought it, before anything was folded into it.

    Attributes:
        values: integers with zero point 0, in the layout in which they were stored.
        scale: float32, () or one per index of ``axis``.
        axis: of the scales, None for one scale.
        dtype: the integer type that the model stored it in.
    """

    values: npt.NDArray[np.int32]
    scale: npt.NDArray[np.float32]
    axis: int | None
    dtype: str

    def transposed(self) -> BroughtWeight:
        """The same of a matrix, turned."""
        axis = None if self.axis is None else 1 - self.axis
        return BroughtWeight(self.values.T, self.scale, axis, self.dtype)


@dataclass(frozen=True)
class Given:
    """What no stage may choose anew.

    Attributes:
        qparams: tensor name -> scale and zero point, of activations and constant operands.
        weights: weight name -> its integers and scales.
    """

    qparams: Mapping[str, QParams] = field(default_factory=dict)
    weights: Mapping[str, IntegerWeight] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether the model brought anything."""
        return bool(self.qparams or self.weights)

    def findings(self) -> tuple[str, ...]:
        """One line for people, where there is something to say."""
        if not self:
            return ()
        others = len(self.qparams.keys() - self.weights.keys())
        return (
            f"the model's own scales are kept: {others} of activations, {len(self.weights)} of "
            "weights; outputs are compared with the model as it came, speed with the same network "
            "in float",
        )


NOTHING_GIVEN = Given()
