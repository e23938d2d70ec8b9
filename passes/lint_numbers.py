"""Look at every number that quantization wrote, repair what no kernel computes with, and say so.

* A scale of zero or less, of a tensor that is always zero: 1 (of a weight's channel: the mean of the
  others, so that a bias which shares it keeps its precision).
* A scale that is denormal, or smaller than integer arithmetic stands: the least safe one; the integers
  of constants are scaled along.
* A scale that is NaN or infinite has no repair: an error that names it.
* Output channels whose weights are all zero, and biases that use most of int32, are said.

Scales that qcompile finds are safe already (see ``ir.affine.solve``); those that a model brings along
need not be. What float16 cannot hold is looked at by ``CastHalf``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import MIN_SCALE
from qcompile.ir.errors import PassError
from qcompile.ir.graph import attribute, constant
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.passes.linear import set_constant

__all__ = ["LintNumbers"]

Array = npt.NDArray[np.generic]
NEAR_FULL = 0.9
"""Share of int32 from which a bias is worth a word."""


@dataclass(frozen=True)
class LintNumbers:
    """Checks scales, weights and biases of all Q/DQ pairs."""

    name: str = "lint-numbers"

    def run(self, state: CompileState) -> PassResult:
        """Repair scales; the notes name tensors.

        Raises:
            PassError: a scale is NaN or infinite.
        """
        graph = state.model.graph
        notes: list[Note] = []
        for node in list(graph):
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 2:
                continue
            scale = constant(node.inputs[1])
            if scale is None or scale.dtype != np.float32:
                continue
            note = _repair(graph, node, scale)
            if note is not None:
                notes.append(note)
            if node.op_type == "DequantizeLinear":
                notes += _look(node)
        return PassResult(sum(n.changed for n in notes), tuple(notes))


def _where(node: oir.Node) -> str:
    value = node.inputs[0] if node.inputs[0] is not None else node.outputs[0]
    return value.name or node.name or ""


def _repair(graph: oir.Graph, node: oir.Node, scale: Array) -> Note | None:
    where = _where(node)
    known = scale.astype(np.float64)
    if not np.isfinite(known).all():
        raise PassError(
            f"{np.count_nonzero(~np.isfinite(known))} scales of tensor '{where}' are NaN or infinite; "
            "needed: finite ones above 0. Repair the model's own scales, or look for infinity in the "
            "calibration data"
        )
    data = constant(node.inputs[0])
    # A bias has the product of two scales, which is smaller by right.
    bias = data is not None and data.dtype == np.int32
    least = float(np.finfo(np.float32).tiny) if bias else MIN_SCALE
    none, small = known <= 0, (known > 0) & (known < least)
    if not (none.any() or small.any()):
        return None
    live = known[~none & ~small]
    instead = float(live.mean()) if live.size and known.size > 1 else 1.0
    repaired = np.where(none, instead, np.where(small, least, known))
    if node.op_type == "DequantizeLinear" and data is not None:
        _rescale(graph, node, data, np.where(none, 0.0, known / repaired))
    set_constant(graph, node, 1, repaired.astype(np.float32))
    found = [f"{int(m.sum())} {w}" for m, w in ((none, "zero"), (small, "denormal")) if m.any()]
    return Note(where, f"{' and '.join(found)} of {known.size} scales repaired", changed=True)


def _rescale(graph: oir.Graph, node: oir.Node, data: Array, ratio: npt.NDArray[np.float64]) -> None:
    """Integers that stand for the same numbers under the repaired scale."""
    axis = int(str(attribute(node, "axis", 1)))
    shape = [-1 if i == axis % data.ndim else 1 for i in range(data.ndim)]
    factor = ratio.reshape(shape) if ratio.ndim and data.ndim > 1 else ratio
    point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros(1) if point is None else point.astype(np.float64)
    zero = zero.reshape(shape) if zero.ndim and zero.size > 1 and data.ndim > 1 else zero
    values = np.rint((data.astype(np.float64) - zero) * factor + zero)
    set_constant(graph, node, 0, values.reshape(data.shape).astype(data.dtype))


def _look(node: oir.Node) -> list[Note]:
    """What is unusual about a constant's integers."""
    data = constant(node.inputs[0])
    if data is None or not data.size:
        return []
    where = _where(node)
    if data.dtype == np.int32:
        share = float(np.abs(data.astype(np.float64)).max()) / np.iinfo(np.int32).max
        if share < NEAR_FULL:
            return []
        return [Note(where, f"the bias uses {share:.0%} of int32")]
    scale = constant(node.inputs[1])
    if data.ndim < 2 or scale is None or scale.ndim != 1 or scale.size != data.shape[0]:
        return []
    point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = 0 if point is None else int(point.reshape(-1)[0])
    dead = int(np.count_nonzero((data.reshape(len(data), -1) == zero).all(axis=1)))
    if not dead or int(str(attribute(node, "axis", 1))) != 0:
        return []
    return [Note(where, f"{dead} of {len(data)} output channels have no weight but zero")]
