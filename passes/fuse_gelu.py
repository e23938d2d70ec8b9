"""Write a GELU that an exporter took apart as one operator.

    x * (1 + erf(x / sqrt 2)) / 2                             ->  Gelu(x)
    x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2       ->  Gelu(x; tanh)
    x * sigmoid(1.702 x)                                      ->  QuickGelu(x; 1.702), contrib only

Gelu is in ONNX from opset 20. Below it, ``contrib`` writes ONNX Runtime's own Gelu, FastGelu and
QuickGelu; without, the nodes stay together (``protected``) for the runtime to recognise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import default_opset
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.pattern import Match, Op, Rule, Term, alt, apply_rules, const, op, var

__all__ = ["GELU_PATTERNS", "FuseGelu"]

X = var("x")
CONTRIB = "com.microsoft"
_Build = Callable[[Match, CompileState], Sequence[oir.Node]]


def _half_product(one_plus: Term) -> tuple[Op, ...]:
    """Every order of ``x * one_plus / 2``."""
    half, two = const(0.5), const(2.0)
    return (
        op("Mul", op("Mul", X, one_plus), half),
        op("Mul", X, alt(op("Mul", one_plus, half), op("Div", one_plus, two))),
        op("Mul", op("Mul", X, half), one_plus),
        op("Div", op("Mul", X, one_plus), two),
    )


def _tanh_argument() -> Term:
    """Every spelling of ``sqrt(2 / pi) * (x + 0.044715 x^3)``."""
    k, root = const(0.044715), const(np.sqrt(2 / np.pi))
    square = alt(op("Mul", X, X), op("Pow", X, const(2.0)))
    cubic = alt(
        op("Mul", alt(op("Pow", X, const(3.0)), op("Mul", X, square)), k),
        op("Mul", X, alt(op("Mul", square, k), op("Mul", X, op("Mul", X, k)))),
    )
    bracket = op("Add", op("Mul", square, k), const(1.0))
    return alt(
        op("Mul", alt(op("Add", X, cubic), op("Mul", X, bracket)), root),
        op("Mul", op("Mul", X, root), bracket),
        op("Mul", X, op("Mul", bracket, root)),
    )


_ERF = op("Erf", alt(op("Div", X, const(np.sqrt(2.0))), op("Mul", X, const(np.sqrt(0.5)))))
EXACT = _half_product(op("Add", _ERF, const(1.0)))
TANH = _half_product(op("Add", op("Tanh", _tanh_argument()), const(1.0)))
QUICK = (op("Mul", X, op("Sigmoid", op("Mul", X, const(name="alpha")))),)
GELU_PATTERNS = (*EXACT, *TANH)


@dataclass(frozen=True)
class FuseGelu:
    """Recognises GELU in the main graph.

    Attributes:
        contrib: below opset 20, write ONNX Runtime's own operators.
    """

    contrib: bool = False
    name: str = "fuse-gelu"

    def run(self, state: CompileState) -> PassResult:
        """Rewrite every complete GELU."""
        rules = [
            Rule("Gelu", EXACT, self._build("Gelu", "none"), self._check),
            Rule("Gelu (tanh)", TANH, self._build("FastGelu", "tanh"), self._check),
        ]
        if self.contrib:
            rules.append(Rule("QuickGelu", QUICK, _build_quick, _check_quick))
        return apply_rules(state, rules)

    def _check(self, found: Match, state: CompileState) -> str | None:
        opset = default_opset(state.model)
        return (
            None if self.contrib or opset >= 20 else f"Gelu needs opset 20, the model has {opset}"
        )

    def _build(self, contrib_name: str, approximate: str) -> _Build:
        def build(found: Match, state: CompileState) -> Sequence[oir.Node]:
            x = found.values["x"]
            if default_opset(state.model) >= 20:
                return [oir.Node("", "Gelu", [x], [oir.AttrString("approximate", approximate)])]
            state.model.graph.opset_imports.setdefault(CONTRIB, 1)
            return [oir.Node(CONTRIB, contrib_name, [x])]

        return build


def _check_quick(found: Match, state: CompileState) -> str | None:
    return None if found.array("alpha").size == 1 else "its factor is not a number"


def _build_quick(found: Match, state: CompileState) -> Sequence[oir.Node]:
    alpha = float(found.array("alpha").reshape(()))
    state.model.graph.opset_imports.setdefault(CONTRIB, 1)
    return [oir.Node(CONTRIB, "QuickGelu", [found.values["x"]], [oir.AttrFloat32("alpha", alpha)])]
