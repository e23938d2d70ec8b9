"""Write a layer normalization that an exporter took apart as one operator.

Before: ``d = x - mean(x)``, ``y = d / sqrt(mean(d^2) + eps) * gamma + beta`` over the last axis, the
division also as a product with a reciprocal or with ``(...) ^ -0.5``, gamma applied to either factor,
gamma and beta optional; ReduceMean with its axes as attribute or input.
After:  ``LayerNormalization(x, gamma, beta; axis = -1, eps)``, opset 17 and up.

The root mean square form ``x / sqrt(mean(x^2) + eps) * gamma`` becomes RMSNormalization from opset
23; below it the nodes stay together (``protected``) for the runtime to recognise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, attribute, constant, default_opset
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Match, Op, Rule, Term, alt, apply_rules, const, op, var

__all__ = ["NORM_PATTERNS", "FuseLayerNorm"]

X = var("x")
EPS = const(name="eps")
GAMMA = const(name="gamma")
BETA = const(name="beta")


def _mean(inner: Term, name: str) -> Term:
    return alt(
        op("ReduceMean", inner, name=name),
        op("ReduceMean", inner, const(name=f"{name}_axes"), name=name),
    )


def _normalized(numerator: Term) -> tuple[Op, ...]:
    """Every spelling of ``numerator / sqrt(mean(numerator^2) + eps)``, gamma inside or not."""
    square = alt(op("Pow", numerator, const(2.0)), op("Mul", numerator, numerator))
    level = op("Add", _mean(square, "variance"), EPS)
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


RMS_NORMS = _with_factor(_normalized(X))
_NO_SHIFT = _with_factor(_normalized(op("Sub", X, _mean(X, "mean"))))
# The longest form first: the shorter ones are parts of it.
LAYER_NORMS = (op("Add", alt(*_NO_SHIFT), BETA), *_NO_SHIFT)
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
    return _check(found, state, 23)


def _check(found: Match, state: CompileState, opset: int) -> str | None:
    have = default_opset(state.model)
    if have < opset:
        return f"it needs opset {opset}, the model has {have}"
    x = found.values["x"]
    rank = None if x.shape is None else len(x.shape)
    for name in ("mean", "variance"):
        node = found.named.get(name)
        if node is not None and not _over_last_axis(node, rank):
            return f"'{node.name}' does not reduce the last axis alone"
    if found.array("eps").size != 1:
        return "its epsilon is not a number"
    width = _width(found)
    if width is None:
        return "the size of the last axis is not known"
    for name in ("gamma", "beta"):
        if (
            name in found.values
            and found.array(name).shape[-1:] != (width,)
            and found.array(name).size != 1
        ):
            return f"its {name} is no vector along the last axis"
        if name in found.values and found.array(name).size not in (1, width):
            return f"its {name} varies along several axes"
    return None


def _over_last_axis(node: oir.Node, rank: int | None) -> bool:
    if not node.attributes.get_int("keepdims", 1):
        return False
    axes: object = attribute(node, "axes")
    if len(node.inputs) > 1:
        stored = constant(node.inputs[1])
        axes = None if stored is None else tuple(int(a) for a in stored.reshape(-1))
    if not isinstance(axes, tuple) or len(axes) != 1:
        return False
    return axes[0] == -1 or (rank is not None and axes[0] == rank - 1)


def _width(found: Match) -> int | None:
    shape = found.values["x"].shape
    if shape is not None and len(shape) > 0 and isinstance(shape[-1], int):
        return shape[-1]
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
        array = np.broadcast_to(array.reshape(-1), (width,))
    elif default is not None:
        array = np.full(width, default, found.array("eps").dtype)
    else:
        return None
    return add_initializer(state.model.graph, f"{found.root.outputs[0].name}_{name}", array)


def _attributes(found: Match) -> list[oir.Attr]:
    epsilon = float(found.array("eps").reshape(()))
    return [oir.AttrInt64("axis", -1), oir.AttrFloat32("epsilon", epsilon)]


def _build_layer_norm(found: Match, state: CompileState) -> Sequence[oir.Node]:
    inputs = [
        found.values["x"],
        _vector(found, state, "gamma", 1.0),
        _vector(found, state, "beta", None),
    ]
    if inputs[-1] is None:
        inputs.pop()
    return [oir.Node("", "LayerNormalization", inputs, _attributes(found))]


def _build_rms_norm(found: Match, state: CompileState) -> Sequence[oir.Node]:
    inputs = [found.values["x"], _vector(found, state, "gamma", 1.0)]
    return [oir.Node("", "RMSNormalization", inputs, _attributes(found))]
