"""Write a softmax that an exporter took apart as one operator.

Before: ``e = exp(x - max(x))``, ``y = e / sum(e)`` over one axis, reduced axes put back by a Reshape
After:  ``Softmax(x; axis)``, opset 13 and up (before, Softmax works on a matrix)

The maximum may be limited from below by -inf or the lowest float, as JAX writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import default_opset
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Match, Rule, alt, apply_rules, const, op, var
from qcompile.passes.reductions import keeps_axis, kept, reduced_axis, reduction

__all__ = ["FuseSoftmax"]

X = var("x")
_HIGHEST = reduction("ReduceMax", X, "max")
_LIMITED = alt(_HIGHEST, op("Max", _HIGHEST, const(name="floor")))
_POWERS = op("Exp", op("Sub", X, kept(_LIMITED), name="centred"))
PATTERN = op("Div", _POWERS, kept(reduction("ReduceSum", _POWERS, "sum")), name="quotient")


@dataclass(frozen=True)
class FuseSoftmax:
    """Recognises Softmax in the main graph."""

    name: str = "fuse-softmax"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite every complete softmax."""
        return apply_rules(state, [Rule("Softmax", (PATTERN,), _build, _check)])


def _check(found: Match, state: CompileState) -> str | None:
    if default_opset(state.model) < 13:
        return f"Softmax along one axis needs opset 13, the model has {default_opset(state.model)}"
    x = found.values["x"]
    axis = reduced_axis(found, x, ("max", "sum"))
    if axis is None:
        return "it does not reduce one known axis"
    for name, whole in (("centred", x), ("quotient", found.named["quotient"].inputs[0])):
        if not keeps_axis(found, found.named[name], whole, x, axis, ("max", "sum")):
            return f"the shape of the operand of '{found.named[name].name}' is not certain"
    if "floor" in found.values and np.any(found.array("floor") > np.finfo(np.float32).min):
        return "its maximum is limited"
    return None


def _build(found: Match, state: CompileState) -> Sequence[oir.Node]:
    axis = reduced_axis(found, found.values["x"], ("max", "sum")) or -1
    return [oir.Node("", "Softmax", [found.values["x"]], [oir.AttrInt64("axis", axis)])]
