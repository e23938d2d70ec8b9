"""Why nothing of a model can be integer, and what of it lies where no plan reaches."""

from __future__ import annotations

from collections import Counter

import onnx_ir as oir

from qcompile.ir.graph import subgraphs_of
from qcompile.ir.macs import MAC_OPERATORS
from qcompile.ir.tidy import integer_operators
from qcompile.prepare import Prepared
from qcompile.verdict import FAIL, Check, GateResult, conclude

__all__ = ["NO_LAYER", "inside_text", "layers_inside", "nothing_integer", "why_float"]

NO_LAYER = "no layer can be integer with this target and these options"


def layers_inside(model: oir.Model) -> tuple[Counter[str], Counter[str]]:
    """Layers with multiply-adds within control flow, and the nodes of the main graph that hold them."""
    layers: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    for node in model.graph:
        found: Counter[str] = Counter()
        for _, inner in subgraphs_of(node):
            found.update(n.op_type for n in inner.all_nodes() if _has_macs(n))
        if found:
            layers += found
            holders[node.op_type] += 1
    return layers, holders


def inside_text(model: oir.Model) -> str:
    """For example "8 MatMul inside 4 Loop"; "" when control flow holds no layer."""
    layers, holders = layers_inside(model)
    return f"{_counts(layers)} inside {_counts(holders)}" if layers else ""


def why_float(prepared: Prepared) -> str:
    """Why no layer of a prepared model can be integer; "" when one could, or there is no single reason."""
    if any(s.role == "compute" and not s.reason for s in prepared.sites):
        return ""
    done = integer_operators(prepared.model)
    if done:
        return (
            f"it is quantized already ({_counts(done)}); give the float model that it was made from"
        )
    inside = inside_text(prepared.model)
    if inside:
        return f"control flow stays in float ({inside}); export the model without it"
    if any(s.role == "compute" for s in prepared.sites):
        return ""
    most = Counter(node.op_type for node in prepared.model.graph).most_common(3)
    names = ", ".join(f"{count} {name}" for name, count in most) or "no node"
    return f"it has no Conv, MatMul, Gemm or LSTM ({names})"


def nothing_integer(why: str) -> GateResult:
    """The verdict where no layer became integer: there is nothing to run.

    Args:
        why: one clause.
    """
    return conclude([Check("layers", FAIL, f"{NO_LAYER}: {why}")])


def _has_macs(node: oir.Node) -> bool:
    return node.domain == "" and node.op_type in MAC_OPERATORS


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counter.items()))
