"""Choose scales that 16 bits hold exactly, before anything is rounded with them.

Before:  s = 0.1003 (float32)      After:  s = 0.1006 (the next float16 or bfloat16 above)

Cast afterwards, a scale of bfloat16 would be off by up to 0.4 %, and every weight with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qcompile.ir.affine import quantize_weight
from qcompile.ir.graph import constant
from qcompile.ir.manager import CompileState, PassResult
from qcompile.passes.cast_half import HALVES
from qcompile.passes.integer_region import integer_region
from qcompile.passes.quantize_weights import weight_keys
from qcompile.passes.share_scales import choose_scales

__all__ = ["RoundScales"]


@dataclass(frozen=True)
class RoundScales:
    """Fills ``state.qparams`` with such scales; integers that were learned stay, under the nearest one.

    Attributes:
        kind: "fp16" or "bf16".
    """

    kind: str = "fp16"
    name: str = "round-scales"

    def run(self, state: CompileState) -> PassResult:
        """Edit no graph; scales too small or large for the type stay as they are.

        Raises:
            CalibrationError: a tensor that needs a range has none.
        """
        region = integer_region(state)
        choose_scales(state, region)
        for node, key in weight_keys(region).items():
            site = region.sites[node]
            array = constant(site.weight)
            if key in state.qparams or key in state.weights or array is None:
                continue
            if site.weight_spec is not None:
                state.qparams[key] = quantize_weight(array, site.weight_spec)[1]
        count = 0
        dtype = HALVES[self.kind].numpy()
        for name, qparams in state.qparams.items():
            if name in state.weights:
                continue
            scale = _near(qparams.scale, dtype, above=True)
            if not np.array_equal(scale, qparams.scale):
                state.qparams[name] = replace(qparams, scale=scale)
                count += 1
        for name, weight in state.weights.items():
            scale = _near(weight.qparams.scale, dtype, above=False)
            if not np.array_equal(scale, weight.qparams.scale):
                qparams = replace(weight.qparams, scale=scale)
                state.weights[name] = replace(weight, qparams=qparams)
                state.qparams[name] = qparams
                count += 1
        return PassResult(count)


def _near(
    scale: npt.NDArray[np.float32], dtype: np.dtype[np.generic], *, above: bool
) -> npt.NDArray[np.float32]:
    """The nearest values of ``dtype``, or the least that are not below ``scale`` (ranges stay covered)."""
    with np.errstate(over="ignore"):
        near = scale.astype(dtype)
    found = near.astype(np.float32)
    if above:
        up = np.nextafter(near, np.asarray(np.inf, dtype)).astype(np.float32)
        found = np.where(found < scale, up, found)
    # A subnormal float16 would lose digits instead.
    fits = np.isfinite(found) & (scale >= 2.0**-14)
    return np.asarray(np.where(fits, found, scale), np.float32)
