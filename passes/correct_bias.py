"""Move the mean error of integer layers into their biases.

Before:  y = Conv(x, W, b)          After:  y = Conv(x, W, b + shift)

With integers W' for W, the output errs by (W' - W) x, on average by (W' - W) mean(x); the shift is
the negative of that mean, so that only the part that varies remains (Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019). Shifts are learned elsewhere;
here they are added, to layers that the plan makes integer and to no others.

A Conv or Gemm without a bias gets one. A MatMul has none: the constant Add behind it takes the shift
where it is the only reader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import (
    add_initializer,
    attribute,
    constant,
    default_opset,
    is_graph_output,
    single_consumer,
)
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.plan import FLOAT, INT8
from qcompile.passes.quantizable import classify

__all__ = ["CorrectBias", "takes_shift"]

BIAS = {"Conv": 2, "Gemm": 2}
"""Operator -> index of its bias."""


@dataclass(frozen=True)
class CorrectBias:
    """Adds ``state.bias_shifts`` and empties it."""

    name: str = "correct-bias"

    def run(self, state: CompileState) -> PassResult:
        """Edit the biases of layers that ``state.plan`` does not leave float."""
        shifts, state.bias_shifts = state.bias_shifts, {}
        choices = {} if state.plan is None else state.plan.by_origin()
        count = 0
        notes: list[Note] = []
        for site in classify(state) if shifts else ():
            shift = shifts.get(site.origin)
            choice = choices.get(site.origin)
            if shift is None or choice is None or choice.precision == FLOAT:
                continue
            if choice.precision == INT8 and site.reason:
                continue  # it stays float whatever the plan says
            reason = takes_shift(site.node, default_opset(state.model))
            if reason:
                notes.append(Note(site.origin, f"bias stays as it is: {reason}"))
                continue
            _shift(state.model.graph, site.node, shift)
            count += 1
        return PassResult(count, tuple(notes))


def takes_shift(node: oir.Node, opset: int = 13) -> str:
    """Why a shift of a node's output channels cannot be put anywhere; "" when it can."""
    if node.op_type == "MatMul":
        return "" if _following(node) else "no constant is added to its result alone"
    index = BIAS.get(node.op_type)
    if index is None:
        return f"{node.op_type} has no bias"
    bias = node.inputs[index] if index < len(node.inputs) else None
    if bias is None:
        if node.op_type == "Gemm" and opset < 7:
            return "Gemm of this opset does not broadcast its bias"
        return ""
    if constant(bias) is None:
        return f"bias '{bias.name}' is not constant"
    if node.op_type == "Gemm" and attribute(node, "beta", 1.0) != 1.0:
        return "its bias is scaled"
    return ""


def _following(node: oir.Node) -> tuple[oir.Node, int] | None:
    """The Add of a constant behind a MatMul, and the constant's index."""
    reader = single_consumer(node.outputs[0])
    if reader is None or reader.op_type != "Add" or reader.domain != "":
        return None
    index = 1 if reader.inputs[0] is node.outputs[0] else 0
    array = constant(reader.inputs[index])
    weight = constant(node.inputs[1])
    if array is None or weight is None or array.dtype != np.float32 or weight.ndim != 2:
        return None
    width = weight.shape[1]
    # With another width the sum would be wider than the product, and channels not its last axis.
    if array.ndim and array.shape[-1] not in (1, width):
        return None
    return reader, index


def _shift(graph: oir.Graph, node: oir.Node, shift: npt.NDArray[np.float32]) -> None:
    if node.op_type == "MatMul":
        following = _following(node)
        if following is None:
            return
        node, index = following
    else:
        index = BIAS[node.op_type]
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
    old = node.inputs[index]
    before = constant(old)
    base = node.name or node.outputs[0].name or node.op_type
    if old is None or before is None:
        array = shift.astype(np.float32)
    else:
        array = (before.astype(np.float64) + shift).astype(np.float32)
        base = old.name or base
    node.replace_input_with(index, add_initializer(graph, f"{base}_corrected", array))
    if (
        old is not None
        and not old.uses()
        and old.is_initializer()
        and not (is_graph_output(old) or old.is_graph_input())
    ):
        graph.initializers.pop(old.name or "", None)
