"""All arithmetic of affine quantization, pure numpy: real = scale * (q - zero_point)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.ir.spec import QuantSpec

__all__ = ["QParams", "TensorRange"]


@dataclass(frozen=True)
class TensorRange:
    """Real limits seen or chosen for a tensor; scalars, or one per channel.

    Attributes:
        low: lowest value to represent.
        high: highest value to represent.
        method: the estimator that chose them ("minmax", "percentile", "entropy", "mse", "weights").
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    method: str = "minmax"


@dataclass(frozen=True)
class QParams:
    """Result: what stands in the graph. Arrays are scalar () or one per channel or block.

    Attributes:
        scale: float32, strictly positive.
        zero_point: of the spec's dtype, same shape as scale.
        spec: the request they answer.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.generic]
    spec: QuantSpec
