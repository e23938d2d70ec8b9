"""Write a layer normalization that an exporter took apart as one operator.

Before: ``d = x - mean(x)``, ``y = d / sqrt(var + eps) * gamma + beta`` over one axis, where

* ``var`` is ``mean(d^2)`` or ``max(mean(x^2) - mean(x)^2, 0)``,
* the mean is a ReduceMean, or a ReduceSum times 1 / n; reshaped where it does not keep its axis,
* the division may be a product with a reciprocal or with ``(...) ^ -0.5``, gamma applied to either factor,
* gamma and beta are optional.

After:  ``LayerNormalization(x, gamma, beta; axis = -1, eps)``, opset 17 and up; between Transposes where
another axis than the last is normalized.

The root mean square form ``x / sqrt(mean(x^2) + eps) * gamma`` becomes RMSNormalization from opset
23; below it the nodes stay together (``protected``) for the runtime to recognise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, constant, default_opset, fresh_name
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Match, Op, Rule, Term, alt, apply_rules, const, op, stand_for, var
from qcompile.passes.reductions import keeps_axis, kept, reduced_axis, reduction

__all__ = ["NORM_PATTERNS", "FuseLayerNorm"]

X = var("x")
EPS = const(name="eps")
GAMMA = const(name="gamma")
BETA = const(name="beta")
REDUCTIONS = ("mean", "square_mean", "variance")


def _mean(inner: Term, name: str) -> Term:
    total = reduction("ReduceSum", inner, name)
    return alt(
        reduction("ReduceMean", inner, name),
        op("Mul", total, const(name=f"{name}_factor")),
        op("Div", total, const(name=f"{name}_count")),
    )


def _square(inner: Term) -> Term:
    return alt(op("Mul", inner, inner), op("Pow", inner, const(2.0)))


def _normalized(numerator: Term, variance: Term) -> tuple[Op, ...]:
    """Every spelling of ``numerator / sqrt(variance + eps)``, gamma inside or not."""
    level = op("Add", variance, EPS, name="level")
    root = alt(op("Sqrt", level), op("Pow", level, const(0.5)))
    inverse = alt(
        op("Reciprocal", root), op("Div", const(1.0), root), op("Pow", level, const(-0.5))
    )
    return (
        op("Div", numerator, root),
        op("Mul", numerator, alt(inverse, op("Mul", inverse, GAMMA))),
    )


def _with_factor(plain: tuple[Op, ...]) -> tuple[Op, ...]:
    return op("Mul", alt(*plain), GAMMA), *plain


def _layer_norms() -> tuple[Op, ...]:
    mean = _mean(X, "mean")
    centred = op("Sub", X, kept(mean), name="centred")
    difference = op("Sub", _mean(_square(X), "square_mean"), _square(mean))
    positive = alt(difference, op("Max", difference, const(0.0)), op("Relu", difference))
    variance = alt(kept(_mean(_square(centred), "variance")), kept(positive))
    plain = _with_factor(_normalized(centred, variance))
    # The longest form first: the shorter ones are parts of it.
    return (op("Add", alt(*plain), BETA), *plain)


LAYER_NORMS = _layer_norms()
RMS_NORMS = _with_factor(_normalized(X, _mean(_square(X), "variance")))
NORM_PATTERNS = (*LAYER_NORMS, *RMS_NORMS)


@dataclass(frozen=True)
class FuseLayerNorm:
    """Recognises LayerNormalization and RMSNormalization in the main graph."""

    name: str = "fuse-layernorm"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite every complete normalization."""
        return apply_rules(
            state,
            [
                Rule("LayerNormalization", LAYER_NORMS, _build_layer_norm, _check_layer_norm),
                Rule("RMSNormalization", RMS_NORMS, _build_rms_norm, _check_rms_norm),
            ],
            outermost_first=True,
        )


def _check_layer_norm(found: Match, state: CompileState) -> str | None:
    return _check(found, state, 17)


def _check_rms_norm(found: Match, state: CompileState) -> str | None:
    reason = _check(found, state, 23)
    if reason is None and _axis(found) != -1:
        reason = "it does not normalize the last axis"
    return reason


def _check(found: Match, state: CompileState, opset: int) -> str | None:
    have = default_opset(state.model)
    if have < opset:
        return f"it needs opset {opset}, the model has {have}"
    x, axis, width = found.values["x"], _axis(found), _width(found)
    if axis is None:
        return "it does not reduce one known axis"
    if width is None:
        return "the size of the normalized axis is not known"
    for name in REDUCTIONS:
        factor, count = found.values.get(f"{name}_factor"), found.values.get(f"{name}_count")
        stored = constant(factor if factor is not None else count)
        if stored is None:
            continue
        divisor = float(1 / stored.reshape(-1)[0] if factor is not None else stored.reshape(-1)[0])
        if stored.size != 1 or not np.isclose(divisor, width, rtol=1e-5):
            return f"its sum is not divided by {width}"
    for name in ("centred", "level"):
        node = found.named.get(name)
        if node is not None and not keeps_axis(found, node, x, x, axis, REDUCTIONS):
            return f"the shape of the operand of '{node.name}' is not certain"
    if found.array("eps").size != 1:
        return "its epsilon is not a number"
    for name in ("gamma", "beta"):
        if name in found.values:
            array = found.array(name)
            if array.size != 1 and (
                array.size != width or array.ndim < -axis or array.shape[axis] != width
            ):
                return f"its {name} is no vector along the normalized axis"
    return None


def _axis(found: Match) -> int | None:
    return reduced_axis(found, found.values["x"], REDUCTIONS)


def _width(found: Match) -> int | None:
    shape, axis = found.values["x"].shape, _axis(found) or -1
    if shape is not None and len(shape) >= -axis and isinstance(width := shape[axis], int):
        return width
    sizes = {found.array(n).size for n in ("gamma", "beta") if n in found.values} - {1}
    return sizes.pop() if len(sizes) == 1 else None


def _vector(
    found: Match, state: CompileState, name: str, default: float | None
) -> oir.Value | None:
    width = _width(found) or 1
    if name in found.values:
        array = found.array(name)
        if array.shape == (width,):
            return found.values[name]
        array = np.array(np.broadcast_to(array.reshape(-1), (width,)))
    elif default is not None:
        array = np.full(width, default, found.array("eps").dtype)
    else:
        return None
    return add_initializer(state.model.graph, f"{found.root.outputs[0].name}_{name}", array)


def _attributes(found: Match) -> list[oir.Attr]:
    epsilon = float(found.array("eps").reshape(()))
    return [oir.AttrInt64("axis", -1), oir.AttrFloat32("epsilon", epsilon)]


def _build_layer_norm(found: Match, state: CompileState) -> Sequence[oir.Node]:
    x, axis = found.values["x"], _axis(found) or -1
    scale, bias = _vector(found, state, "gamma", 1.0), _vector(found, state, "beta", None)
    inputs = [x, scale] if bias is None else [x, scale, bias]
    norm = oir.Node("", "LayerNormalization", inputs, _attributes(found))
    if axis == -1 or x.shape is None:
        return [norm]
    rank = len(x.shape)
    last = [i for i in range(rank) if i != rank + axis] + [rank + axis]
    before = _transpose(state, found, x, last, "last")
    norm.replace_input_with(0, before.outputs[0])
    norm.outputs[0].name = fresh_name(state.model.graph, f"{found.root.outputs[0].name}_normalized")
    norm.outputs[0].type, norm.outputs[0].shape = x.type, before.outputs[0].shape
    stand_for(norm, [found.root, *found.nodes])
    after = _transpose(state, found, norm.outputs[0], [int(i) for i in np.argsort(last)], "back")
    return [before, norm, after]


def _transpose(
    state: CompileState, found: Match, x: oir.Value, perm: list[int], side: str
) -> oir.Node:
    node = oir.Node(
        "", "Transpose", [x], [oir.AttrInt64s("perm", perm)], name=f"{found.root.name}/{side}"
    )
    node.outputs[0].name = fresh_name(state.model.graph, f"{found.root.outputs[0].name}_{side}")
    node.outputs[0].type = x.type
    if x.shape is not None:
        node.outputs[0].shape = oir.Shape([x.shape[i] for i in perm])
    return node


def _build_rms_norm(found: Match, state: CompileState) -> Sequence[oir.Node]:
    inputs = [found.values["x"], _vector(found, state, "gamma", 1.0)]
    return [oir.Node("", "RMSNormalization", inputs, _attributes(found))]
