"""Write activations that an exporter took apart as one operator.

    x * clip(x + 3, 0, 6) / 6                      ->  HardSwish(x), in every order of the factors
    x * HardSigmoid(x; 1/6, 1/2)                   ->  HardSwish(x)
    clip(a x + b, 0, 1), clip(x + c, 0, d) / d     ->  HardSigmoid(x; a, b)
    1 / (1 + exp(-x))                              ->  Sigmoid(x)
    max(x, a x) with 0 < a < 1                     ->  LeakyRelu(x; a)
    min(max(x, l), h), clip(relu(x)), relu(clip(x))  ->  Clip(x, l, h), so ReLU6 is a Clip

HardSwish needs opset 14; below it ``x * HardSigmoid(x)`` is written (two nodes instead of four).
SiLU stays ``x * Sigmoid(x)``: ONNX Runtime runs the pair as fast as its own QuickGelu (measured
between two Convs: 284 and 282 us), and it is plain ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import add_initializer, attribute, constant, default_opset
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Alt, Match, Op, Rule, Term, alt, apply_rules, const, op, var

__all__ = ["FuseActivations"]

X = var("x")
ATTRIBUTE_RTOL = 1e-5


@dataclass(frozen=True)
class FuseActivations:
    """Recognises HardSwish, HardSigmoid, Sigmoid, LeakyRelu and Clip in the main graph."""

    name: str = "fuse-activations"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite in graph order, so that HardSigmoid is found before the HardSwish around it."""
        return apply_rules(state, RULES)


def _clipped(inner: Term, high: float | None = None) -> Term:
    """Every spelling of clip(inner, 0, high); a free ``high`` is bound as "high"."""
    top = const(high, "high")
    spellings = [
        op("Clip", alt(inner, op("Relu", inner)), const(0.0), top),
        op("Min", alt(op("Max", inner, const(0.0)), op("Relu", inner)), top),
        op("Max", op("Min", inner, top), const(0.0)),
    ]
    if high is not None:  # Clip before opset 11
        spellings.append(op("Clip", inner, min=0.0, max=high))
    return alt(*spellings)


def _hard_swishes() -> tuple[Op, ...]:
    gate, six, sixth = _clipped(op("Add", X, const(3.0)), 6.0), const(6.0), const(1 / 6)
    return (
        op("Mul", X, op("HardSigmoid", X, name="gate")),
        op("Div", op("Mul", X, gate), six),
        op("Mul", op("Mul", X, gate), sixth),
        op("Mul", X, alt(op("Div", gate, six), op("Mul", gate, sixth))),
        op("Mul", alt(op("Div", X, six), op("Mul", X, sixth)), gate),
    )


def _hard_sigmoids() -> tuple[Op, ...]:
    shift, scale, divisor = const(name="shift"), const(name="scale"), const(name="divisor")
    line = op("Add", alt(op("Mul", X, scale), op("Div", X, divisor)), shift)
    whole = _clipped(line, 1.0)
    # clip(x + c, 0, d) / d: the divisor must equal the upper limit.
    part = _clipped(op("Add", X, shift))
    return (*_operators(whole), op("Div", part, divisor), op("Mul", part, scale))


def _operators(term: Term) -> tuple[Op, ...]:
    return tuple(t for t in term.terms if isinstance(t, Op)) if isinstance(term, Alt) else ()


def _number(found: Match, name: str) -> float | None:
    """The value of a constant of one element, None if it is not bound or has more."""
    if name not in found.values:
        return None
    array = found.array(name)
    return float(array.reshape(())) if array.size == 1 else float("nan")


def _line(found: Match) -> tuple[float, float] | None:
    """(alpha, beta) of a hard sigmoid, None if the constants do not make one."""
    shift, scale = _number(found, "shift"), _number(found, "scale")
    divisor, high = _number(found, "divisor"), _number(found, "high")
    if scale is None:
        scale = 1.0 / divisor if divisor else float("nan")
    if shift is None or not np.isfinite([shift, scale]).all():
        return None
    if high is None or high == 1.0:
        return scale, shift
    if not np.isclose(high * scale, 1.0, rtol=ATTRIBUTE_RTOL):
        return None
    return scale, shift * scale


def _check_hard_sigmoid(found: Match, state: CompileState) -> str | None:
    line = _line(found)
    if line is None:
        return "its constants are not scalars with the upper limit 1"
    return None if line[0] > 0 else "its slope is not positive"


def _build_hard_sigmoid(found: Match, state: CompileState) -> Sequence[oir.Node]:
    alpha, beta = _line(found) or (0.0, 0.0)
    return [_hard_sigmoid(found.values["x"], alpha, beta)]


def _hard_sigmoid(x: oir.Value, alpha: float, beta: float) -> oir.Node:
    attributes = [oir.AttrFloat32("alpha", alpha), oir.AttrFloat32("beta", beta)]
    return oir.Node("", "HardSigmoid", [x], attributes)


def _check_hard_swish(found: Match, state: CompileState) -> str | None:
    gate = found.named.get("gate")
    if gate is None:
        return None
    if default_opset(state.model) < 14:
        return f"HardSwish needs opset 14, the model has {default_opset(state.model)}"
    line = [gate.attributes.get_float("alpha", 0.2), gate.attributes.get_float("beta", 0.5)]
    if not np.allclose(line, [1 / 6, 0.5], rtol=ATTRIBUTE_RTOL):
        return "its HardSigmoid is not clip(x / 6 + 1 / 2)"
    return None


def _build_hard_swish(found: Match, state: CompileState) -> Sequence[oir.Node]:
    x = found.values["x"]
    if default_opset(state.model) >= 14:
        return [oir.Node("", "HardSwish", [x])]
    gate = _hard_sigmoid(x, 1 / 6, 0.5)
    gate.name = f"{found.root.name}/gate"
    gate.outputs[0].name = f"{found.root.outputs[0].name}_gate"
    gate.outputs[0].type, gate.outputs[0].shape = x.type, x.shape
    return [gate, oir.Node("", "Mul", [x, gate.outputs[0]])]


def _check_leaky(found: Match, state: CompileState) -> str | None:
    slope = _number(found, "slope")
    return None if slope is not None and 0 < slope < 1 else "its slope is not between 0 and 1"


def _build_leaky(found: Match, state: CompileState) -> Sequence[oir.Node]:
    slope = _number(found, "slope") or 0.0
    return [oir.Node("", "LeakyRelu", [found.values["x"]], [oir.AttrFloat32("alpha", slope)])]


def _limits(found: Match) -> tuple[float, float]:
    """Limits of nested clips, applied from the inside out."""
    low, high = -np.inf, np.inf
    for node in reversed(found.nodes):
        bounds = [constant(v) for v in node.inputs[1:] if v is not None]
        if node.op_type == "Clip" and len(node.inputs) == 1:
            bounds = [
                np.asarray(attribute(node, "min", -np.inf)),
                np.asarray(attribute(node, "max", np.inf)),
            ]
        if node.op_type == "Relu":
            one, two = 0.0, np.inf
        elif node.op_type == "Clip":
            one, two = (float(b.reshape(())) if b is not None else np.nan for b in bounds)
        else:
            operand = next(b for v in node.inputs if (b := constant(v)) is not None)
            value = float(operand.reshape(())) if operand.size == 1 else np.nan
            one, two = (value, np.inf) if node.op_type == "Max" else (-np.inf, value)
        low, high = min(max(low, one), two), min(max(high, one), two)
    return low, high


def _check_clip(found: Match, state: CompileState) -> str | None:
    if default_opset(state.model) < 11:
        return (
            f"Clip takes limits as inputs from opset 11, the model has {default_opset(state.model)}"
        )
    x = found.values["x"]
    for name, value in found.values.items():
        if name == "x" or value.shape is None or len(value.shape) == 0:
            continue
        if x.shape is None or len(value.shape) > len(x.shape):
            return f"its limit '{value.name}' may broadcast the input"
    if not np.isfinite(_limits(found)).all():
        return "its limits are not scalars"
    return None


def _build_clip(found: Match, state: CompileState) -> Sequence[oir.Node]:
    low, high = _limits(found)
    x, graph = found.values["x"], state.model.graph
    kind = found.array("low" if "low" in found.values else "high").dtype
    base = found.root.outputs[0].name
    limits = [
        add_initializer(graph, f"{base}_{side}", np.array(value, kind))
        for side, value in (("low", low), ("high", high))
    ]
    return [oir.Node("", "Clip", [x, *limits])]


def _clips() -> tuple[Op, ...]:
    low, high = const(name="low"), const(name="high")
    return (
        op("Min", op("Max", X, low), high),
        op("Max", op("Min", X, high), low),
        op("Min", op("Relu", X), high),
        op("Relu", op("Min", X, high)),
        op("Relu", op("Clip", X, low, high)),
        op("Clip", op("Relu", X), low, high),
    )


def _build_sigmoid(found: Match, state: CompileState) -> Sequence[oir.Node]:
    return [oir.Node("", "Sigmoid", [found.values["x"]])]


_EXP = op("Add", op("Exp", op("Neg", X)), const(1.0))

RULES = (
    Rule("HardSwish", _hard_swishes(), _build_hard_swish, _check_hard_swish),
    Rule("HardSigmoid", _hard_sigmoids(), _build_hard_sigmoid, _check_hard_sigmoid),
    Rule("Sigmoid", (op("Div", const(1.0), _EXP), op("Reciprocal", _EXP)), _build_sigmoid),
    Rule(
        "LeakyRelu", (op("Max", X, op("Mul", X, const(name="slope"))),), _build_leaky, _check_leaky
    ),
    Rule("Clip", _clips(), _build_clip, _check_clip),
)
