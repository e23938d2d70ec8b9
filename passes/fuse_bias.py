"""Give a MatMul its bias: one Gemm instead of MatMul and Add, where both inputs are matrices.

Before: ``Add(MatMul(x (m, k), W (k, n)), b)`` with constant ``b`` of shape (n), (1, n) or ()
After:  ``Gemm(x, W, b)``

MatMul with inputs of three or more dimensions stays: Gemm takes matrices only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, default_opset
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Match, Rule, apply_rules, const, op, stand_for, var

__all__ = ["FuseBias"]

PATTERN = op("Add", op("MatMul", var("x"), const(name="w"), name="matmul"), const(name="bias"))


@dataclass(frozen=True)
class FuseBias:
    """Writes MatMul and Add as Gemm in the main graph."""

    name: str = "fuse-bias"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite each MatMul of two matrices with a constant bias."""
        return apply_rules(state, [Rule("Gemm", (PATTERN,), _build, _check)])


def _check(found: Match, state: CompileState) -> str | None:
    x, weight, bias = found.values["x"], found.array("w"), found.array("bias")
    if x.shape is None:
        return "the rank of its input is not known"
    if len(x.shape) != 2:
        return f"its input has {len(x.shape)} dimensions"
    if weight.ndim != 2 or weight.dtype.kind != "f":
        return "its weight is no float matrix"
    width = weight.shape[1]
    if bias.shape not in ((width,), (1, width)) and bias.size != 1:
        return f"the constant added has shape {list(bias.shape)}"
    return "the constant added has more than two dimensions" if bias.ndim > 2 else None


def _build(found: Match, state: CompileState) -> Sequence[oir.Node]:
    graph, bias, width = state.model.graph, found.array("bias"), found.array("w").shape[1]
    value = found.values["bias"]
    if bias.shape != (width,) or default_opset(state.model) < 7:
        flat = np.array(np.broadcast_to(bias.reshape(-1), (width,)))
        value = add_initializer(graph, f"{value.name}_bias", flat)
    gemm = oir.Node("", "Gemm", [found.values["x"], found.values["w"], value])
    matmul = found.named["matmul"]
    stand_for(gemm, [matmul, found.root])
    return [gemm]
