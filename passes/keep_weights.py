"""Give weights that came quantized their integers and scales back, when all folds are done.

A fold that scales output channels (a batch norm behind the layer) leaves the integers and scales the
scales; one that comes to a factor of 1, as PyTorch writes a simulated batch norm fold, leaves the
scales as they were, bit for bit. A weight that became anything else is rounded anew, which is said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import QParams
from qcompile.ir.given import BroughtWeight
from qcompile.ir.graph import constant
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.spec import INTEGER_BITS, PER_TENSOR, QuantSpec, per_axis
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.quantizable import Site, classify

__all__ = ["BROUGHT", "KeepWeights"]

BROUGHT = "brought by the model"

SAME = 1e-5
"""A channel's factor nearer to 1 is rounding in the folds; nearer to the integers' multiple, too."""

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class KeepWeights:
    """Fills ``state.weights``, and ``state.qparams`` for constant operands, from ``state.brought``."""

    name: str = "keep-weights"

    def run(self, state: CompileState) -> PassResult:
        """Edits no graph."""
        notes: list[Note] = []
        count = 0
        for site in classify(state) if state.brought else ():
            if site.reason or site.row is None:
                continue
            for index, value in site.constants.items():
                brought = state.brought.get((site.origin, index))
                known = None if brought is None else _operand(state, value, brought)
                if known is not None:
                    state.qparams.setdefault(value.name or "", known)
                    count += 1
            found = state.brought.get((site.origin, site.row.weight or 0))
            if found is None or site.weight is None:
                continue
            kept = _kept(site, found)
            if isinstance(kept, str):
                notes.append(Note(site.origin, f"weight rounded anew: {kept}"))
                continue
            weight, factor = kept
            state.weights.setdefault(site.weight.name or "", weight)
            state.qparams.setdefault(site.weight.name or "", weight.qparams)
            count += 1
            if not (factor == 1).all():
                text = "integers kept, scales multiplied by what was folded into the weight"
                notes.append(Note(site.origin, text, changed=True))
        return PassResult(count, tuple(notes))


def _kept(site: Site, found: BroughtWeight) -> tuple[IntegerWeight, npt.NDArray[np.float64]] | str:
    """The weight on its own integers and the factor of each channel, or why that cannot be."""
    array, spec = constant(site.weight), site.weight_spec
    if array is None or spec is None:
        return "it is no constant any more"
    if spec.dtype not in INTEGER_BITS:
        return f"the target stores weights as {spec.dtype}"
    axis = spec.granularity.axis
    factor = _factor(found, array, axis)
    if factor is None and found.values.ndim == 2:
        found = found.transposed()
        factor = _factor(found, array, axis)
    if factor is None:
        return "something other than a factor for each channel was folded into it"
    if found.axis is not None and found.axis != axis:
        return f"its scales lie along axis {found.axis}; {site.op_type} needs them along {axis}"
    integers = found.values
    low, high = _reach(spec)
    if integers.min(initial=0) < low or integers.max(initial=0) > high:
        return f"its integers leave {low} to {high} when its zero point is 0"
    if (factor < 0).any() and integers.min(initial=0) < -high:
        return "a negative factor was folded into it, and it holds the lowest integer"
    one = bool((factor == 1).all())
    if axis is None or (one and found.axis is None):
        scale, granularity = found.scale, PER_TENSOR
        if not one:
            scale = np.asarray(found.scale * np.abs(factor.reshape(-1)[0]), np.float32)
    else:
        scale = np.broadcast_to(found.scale, factor.shape).astype(np.float32)
        scale = scale if one else (scale * np.abs(factor)).astype(np.float32)
        granularity = per_axis(axis)
    signs = _along(np.sign(factor), axis, array.ndim).astype(np.int32)
    values = (integers * signs).astype(np.int8)
    zero = np.zeros(scale.shape, np.int8)
    whole = replace(spec, granularity=granularity, narrow=False, bits=None)
    return IntegerWeight(values, QParams(scale, zero, whole), BROUGHT), factor


def _reach(spec: QuantSpec) -> tuple[int, int]:
    bits = INTEGER_BITS[spec.dtype][0]
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _factor(found: BroughtWeight, array: Array, axis: int | None) -> npt.NDArray[np.float64] | None:
    """What each channel of the weight was multiplied by; None where that does not explain it."""
    if found.values.shape != array.shape:
        return None
    came = found.values * _along(found.scale, found.axis, array.ndim).astype(np.float64)
    now = array.astype(np.float64)
    rest = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    energy = np.asarray((came * came).sum(axis=rest))
    factor = np.where(energy > 0, (came * now).sum(axis=rest) / np.where(energy > 0, energy, 1), 1)
    factor = np.where(np.abs(factor - 1) < SAME, 1.0, factor)
    error = np.abs(now - came * _along(factor, axis, array.ndim).astype(np.float64)).max(initial=0)
    if error > SAME * np.abs(now).max(initial=0) or (factor == 0).any():
        return None
    return np.asarray(factor)


def _along(array: npt.NDArray[np.generic], axis: int | None, rank: int) -> npt.NDArray[np.generic]:
    if axis is None or array.ndim == 0:
        return array
    return array.reshape((-1,) + (1,) * (rank - 1 - axis))


def _operand(state: CompileState, value: oir.Value, found: BroughtWeight) -> QParams | None:
    """Parameters of a constant operand on the target's activation type; None where it has no room."""
    spec = state.target.activation
    array = constant(value)
    if spec.dtype not in INTEGER_BITS or found.axis is not None:
        return None
    if array is None or _factor(found, array, None) is None:
        return None
    low, high = int(found.values.min(initial=0)), int(found.values.max(initial=0))
    zero = 0 if spec.symmetric else spec.qmin - low
    if low + zero < spec.qmin or high + zero > spec.qmax:
        return None
    kind = np.int8 if spec.dtype == "int8" else np.uint8
    return QParams(found.scale, np.asarray(zero, kind), spec)
