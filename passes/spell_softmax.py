"""Write a Softmax over an inner axis as its parts.

Before: ``Softmax(x; axis)`` with further axes behind ``axis``
After:  ``e = Exp(x - ReduceMax(x))``, ``y = e / ReduceSum(e)`` along the axis

For a runtime whose Softmax works on rows alone: ONNX Runtime 1.31 takes 832 us for
``(1, 16, 4, 2100)`` along axis 1, and 133 us for the parts, which it computes along the last axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, default_opset, fresh_name, origin
from qcompile.ir.manager import CompileState, Note, PassResult
from qcompile.ir.pattern import Match, replace, stand_for

__all__ = ["SpellSoftmax"]


@dataclass(frozen=True)
class SpellSoftmax:
    """Takes Softmax over inner axes of the main graph apart.

    Attributes:
        min_inner: number of elements behind the axis from which it pays.
    """

    min_inner: int = 16
    name: str = "spell-softmax"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite each Softmax whose axis is known not to be the last."""
        notes: list[Note] = []
        if default_opset(state.model) < 13:
            return PassResult(0)
        for node in list(state.model.graph):
            if node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
                continue
            x = node.inputs[0]
            if x is None or x.shape is None:
                continue
            axis = node.attributes.get_int("axis", -1) % len(x.shape)
            inner = list(x.shape)[axis + 1 :]
            known = int(np.prod([d for d in inner if isinstance(d, int)], dtype=np.int64))
            if not inner or (all(isinstance(d, int) for d in inner) and known < self.min_inner):
                continue
            _spell(state.model, node, x, axis)
            notes.append(
                Note(origin(node) or node.name or "", f"Softmax along axis {axis} spelled", True)
            )
        return PassResult(len(notes), tuple(notes))


def _spell(model: oir.Model, node: oir.Node, x: oir.Value, axis: int) -> None:
    graph, base = model.graph, str(node.outputs[0].name)
    shape = None if x.shape is None else list(x.shape)
    if shape is not None:
        shape[axis] = 1

    def made(kind: str, inputs: list[oir.Value], name: str, reduced: bool) -> oir.Node:
        new = oir.Node("", kind, inputs, name=f"{node.name}/{name}")
        out = new.outputs[0]
        out.name, out.type = fresh_name(graph, f"{base}_{name}"), x.type
        out.shape = x.shape if not reduced else None if shape is None else oir.Shape(shape)
        return new

    axes = add_initializer(graph, f"{base}_axes", np.array([axis], np.int64))
    highest = made("ReduceMax", [x], "max", True)
    if default_opset(model) >= 18:
        highest.resize_inputs(2)
        highest.replace_input_with(1, axes)
    else:
        highest.attributes["axes"] = oir.AttrInt64s("axes", [axis])
    centred = made("Sub", [x, highest.outputs[0]], "centred", False)
    power = made("Exp", [centred.outputs[0]], "exp", False)
    total = made("ReduceSum", [power.outputs[0], axes], "sum", True)
    quotient = oir.Node("", "Div", [power.outputs[0], total.outputs[0]])
    stand_for(quotient, [node])
    replace(Match({}, (node,)), [highest, centred, power, total, quotient])
