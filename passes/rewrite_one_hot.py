"""Look embeddings up instead of multiplying them with ones and zeros.

Before: ``MatMul(Cast(Equal(ids (..., 1), [s, s + 1, ... s + n - 1])), W (n, d))``
After:  ``Gather([0; W; 0], Clip(ids, s - 1, s + n) - (s - 1))``

An id outside the list matches nothing and gives zeros, hence the two rows of zeros around W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, default_opset, fresh_name
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Match, Rule, apply_rules, const, op, stand_for, var

__all__ = ["RewriteOneHot"]

ONE_HOT = op("Cast", op("Equal", var("ids"), const(name="classes"), name="equal"), name="cast")
PATTERN = op("MatMul", ONE_HOT, const(name="table"), name="matmul")
INTEGERS = (oir.DataType.INT32, oir.DataType.INT64)


@dataclass(frozen=True)
class RewriteOneHot:
    """Turns products with one-hot vectors into Gather."""

    name: str = "rewrite-one-hot"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite every such product in the main graph."""
        return apply_rules(state, [Rule("Gather", (PATTERN,), _build, _check)])


def _check(found: Match, state: CompileState) -> str | None:
    ids, classes, table = found.values["ids"], found.array("classes"), found.array("table")
    if default_opset(state.model) < 13:
        return f"Clip and Squeeze as used need opset 13, the model has {default_opset(state.model)}"
    if ids.dtype not in INTEGERS:
        return "its ids are no 32 or 64 bit integers"
    if table.ndim != 2 or table.dtype.kind != "f" or table.shape[0] != classes.size:
        return "its table does not have one row per class"
    flat = classes.reshape(-1)
    if classes.shape[-1:] != (flat.size,) or np.any(np.diff(flat.astype(np.int64)) != 1):
        return "its classes are not consecutive numbers"
    if int(flat[0]) <= np.iinfo(np.int32).min or int(flat[-1]) >= np.iinfo(np.int32).max:
        return "its classes reach the limits of 32 bits"
    shape = ids.shape
    if shape is None or len(shape) == 0 or shape[-1] != 1 or len(shape) < classes.ndim:
        return "its ids are not known to have a last axis of 1"
    return None


def _build(found: Match, state: CompileState) -> Sequence[oir.Node]:
    graph, ids = state.model.graph, found.values["ids"]
    classes, table = found.array("classes").reshape(-1), found.array("table")
    dtype, base = classes.dtype, str(found.root.outputs[0].name)
    first = int(classes[0])
    zeros = np.zeros((1, table.shape[1]), table.dtype)

    def number(side: str, value: int) -> oir.Value:
        return add_initializer(graph, f"{base}_{side}", np.array(value, dtype))

    def node(kind: str, inputs: list[oir.Value], name: str) -> oir.Node:
        new = oir.Node("", kind, inputs, name=f"{found.root.name}/{name}")
        new.outputs[0].name = fresh_name(graph, f"{base}_{name}")
        new.outputs[0].type = ids.type
        return new

    axes = add_initializer(graph, f"{base}_axes", np.array([-1], np.int64))
    squeezed = node("Squeeze", [ids, axes], "ids")
    clipped = node(
        "Clip",
        [squeezed.outputs[0], number("low", first - 1), number("high", first + classes.size)],
        "limited",
    )
    rows = node("Sub", [clipped.outputs[0], number("offset", first - 1)], "rows")
    padded = add_initializer(
        graph, f"{found.values['table'].name}_rows", np.concatenate([zeros, table, zeros])
    )
    gather = oir.Node("", "Gather", [padded, rows.outputs[0]], [oir.AttrInt64("axis", 0)])
    stand_for(gather, [found.named["matmul"], *found.nodes])
    return [squeezed, clipped, rows, gather]
